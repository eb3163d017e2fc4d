"""The leader explains to each queued job what it waits for, its position in the queue, and when it may start."""

import uuid
from datetime import UTC, timedelta
from typing import Any

from sqlalchemy import delete, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.admission import budgets, fair_share
from zhub.admission.fair_share import Tenant, Waiting
from zhub.admission.snapshot import CLUSTERS, Cluster, read_clusters
from zhub.database import sessions
from zhub.ids import new_id
from zhub.models import QueuePlace
from zhub.queue.jobs import KindNames

MAX_EXPLAINED = 1000  # of each cluster


def explain(session: Session, kinds: KindNames, *, agent_lost_after_s: float) -> None:
    """Write for each queued job what it waits for, its position, and when it may start."""
    now = sessions.now(session)
    budget = budgets.spent(session)
    explanations: dict[uuid.UUID, dict[str, Any]] = {}
    for cluster in read_clusters(session, kinds, agent_lost_after_s, MAX_EXPLAINED):
        ordered = fair_share.order(cluster.tenants, cluster.queues)[:MAX_EXPLAINED]
        starts = fair_share.starts(cluster.free, cluster.running, [job for _, job in ordered])
        counts: dict[uuid.UUID, int] = {}
        for ahead, ((org_id, job), start_s) in enumerate(zip(ordered, starts, strict=True)):
            own_ahead = counts.get(org_id, 0)
            counts[org_id] = own_ahead + 1
            explanations[job.id] = {
                "org_id": org_id,
                "position": ahead + 1,
                "reason": _reason(cluster, cluster.tenants[org_id], job, own_ahead, ahead - own_ahead),
                "starts_at": None if start_s is None else now + timedelta(seconds=start_s),
            }
        for org_id, queue in cluster.spent.items():
            reason = f"{budget[org_id].sentence()}: the job waits for the next month, or for a larger budget."
            waiting = {"org_id": org_id, "position": None, "reason": reason, "starts_at": None}
            explanations |= {job.id: waiting for job in queue}
    values = {"lost": agent_lost_after_s, "limit": MAX_EXPLAINED, "light": kinds.light}
    for row in session.execute(text(_NOT_ADMISSIBLE), values):
        explanations[row.id] = {
            "org_id": row.org_id,
            "position": None,
            "reason": _obstacle(row),
            "starts_at": row.not_before,
        }
    session.execute(delete(QueuePlace).where(QueuePlace.job_id.not_in(list(explanations))))
    if explanations:
        statement = insert(QueuePlace).values(
            [{"id": new_id(), "job_id": job_id, **explanation} for job_id, explanation in explanations.items()]
        )
        new = statement.excluded
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["job_id"],
                set_={"position": new.position, "reason": new.reason, "starts_at": new.starts_at},
            )
        )


_WAITS = "id, org_id, cluster, kind, desired, not_before"


# Queued jobs that no pass looks at, and why. Each of the three has its own index: the queue may be long.
# Plan at 10^6 jobs, 3 * 10^5 of them queued: ix_jobs_wish, ix_jobs_retry, and for each cluster without an agent the
# first :limit entries of ix_jobs_rank; 2,000 rows, 8 ms. Joined with jobs again by id, all of jobs would be read.
_NOT_ADMISSIBLE = f"""
    WITH RECURSIVE {CLUSTERS}, queued_in AS (
        SELECT min(cluster) AS cluster FROM jobs WHERE state = 'queued'
         UNION ALL
        SELECT (SELECT min(cluster) FROM jobs WHERE state = 'queued' AND cluster > queued_in.cluster)
          FROM queued_in WHERE cluster IS NOT NULL
    ), elsewhere AS (
        (SELECT {_WAITS} FROM jobs WHERE state = 'queued' AND desired <> 'run' LIMIT :limit)
         UNION
        (SELECT {_WAITS} FROM jobs WHERE state = 'queued' AND not_before IS NOT NULL AND not_before > now()
          ORDER BY not_before LIMIT :limit)
         UNION
        SELECT j.* FROM queued_in CROSS JOIN LATERAL
               (SELECT {_WAITS} FROM jobs WHERE state = 'queued' AND cluster = queued_in.cluster
                   AND (kind <> ALL(:light) OR NOT EXISTS (SELECT FROM clusters))
                 ORDER BY org_id, ranked_at, id LIMIT :limit) j
         WHERE queued_in.cluster NOT IN (SELECT cluster FROM clusters)
    )
    SELECT j.id, j.org_id, j.cluster, j.desired, j.not_before,
           c.cluster IS NULL AND (j.kind <> ALL(:light) OR NOT EXISTS (SELECT FROM clusters)) AS no_agent,
           (SELECT string_agg(cluster, ', ' ORDER BY cluster) FROM clusters) AS alive
      FROM elsewhere j LEFT JOIN clusters c USING (cluster)
"""


def _reason(cluster: Cluster, tenant: Tenant, job: Waiting, own_ahead: int, others_ahead: int) -> str:
    if job.workers > tenant.cap + fair_share.ROUNDING:
        return (
            f"It needs {_workers(job.workers)}, and your organisation's quota is {_workers(tenant.cap)}: it cannot run "
            "unless the platform's operator allows more."
        )
    if not tenant.may_hold(job.workers):
        return (
            f"Your organisation holds {_workers(tenant.held)}, and its quota is {_workers(tenant.cap)}: "
            f"the job waits until one of its jobs ends."
        )
    ahead = own_ahead + others_ahead
    if ahead:
        parts = [f"{own_ahead} of your organisation's"] * bool(own_ahead) + [f"{others_ahead} of others'"] * bool(
            others_ahead
        )
        return f"{ahead} {'job is' if ahead == 1 else 'jobs are'} served before it: {' and '.join(parts)}."
    if job.workers > cluster.free:
        free = f"{max(0.0, cluster.free):.3g} of {_workers(cluster.workers)}"
        return f"It is next. It needs {_workers(job.workers)}, and {free} free: it waits until another job ends."
    return "It is next, and is being admitted."


def _obstacle(row: Any) -> str:
    if row.no_agent:
        alive = f"Agents are alive of: {row.alive}." if row.alive else "Nor is one of any other cluster."
        return f"No agent of cluster '{row.cluster}' is alive: nothing runs there until one is started. {alive}"
    if row.desired != "run":
        return f"It is about to be {'cancelled' if row.desired == 'cancel' else 'paused'}."
    return f"An attempt failed; the next one may begin at {row.not_before.astimezone(UTC):%H:%M:%S} UTC."


def _workers(count: float) -> str:
    return f"{count:.3g} worker" + ("" if count == 1 else "s")
