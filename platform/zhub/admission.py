"""Which queued jobs may be claimed, what was used, and what the others are told.

The leader calls all of this but ``check_queue``, each in its own transaction.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub import fair_share, jobs, states
from zhub.errors import QuotaExceededError
from zhub.fair_share import HALF_LIFE_S, Queues, Running, Tenant, Waiting
from zhub.ids import new_id
from zhub.models import Job, QueuePlace, Quota

MAX_HEADS = 200  # of each organisation, that a pass looks at
MAX_LIGHT = 500  # that a pass admits
MAX_EXPLAINED = 1000  # of each cluster

# What a job takes of its cluster: a place of a worker where it shares one, else as many workers as it asks for, and
# where the cluster has not as many, all of them.
TAKES = """CASE WHEN j.pack_key IS NOT NULL AND j.infra_failures = 0 THEN 1.0 / c.jobs_per_worker
                 ELSE least(j.workers, c.workers) END"""
# Since it could have been admitted first. Of a job that was paused nobody knows when it was resumed.
_WAITED = """CASE WHEN fence = 0 OR not_before IS NOT NULL
                  THEN extract(epoch FROM now() - greatest(created_at, not_before))::float END"""
CLUSTERS = """clusters AS (
    SELECT cluster, max(slots) AS workers, max(jobs_per_worker) AS jobs_per_worker FROM agents
     WHERE seen_at > now() - make_interval(secs => :lost) GROUP BY cluster
)"""


class Admitted(NamedTuple):
    """A job that was admitted, and how many seconds after it could have been; None where nobody knows."""

    job_id: uuid.UUID
    org_id: uuid.UUID
    cluster: str
    waited_s: float | None


@dataclass(frozen=True)
class _Cluster:
    """A cluster as a pass finds it."""

    name: str
    workers: float
    running: Sequence[Running]
    tenants: Mapping[uuid.UUID, Tenant]
    queues: Queues

    @property
    def free(self) -> float:
        return self.workers - sum(one.workers for one in self.running)


def admit(session: Session, *, agent_lost_after_s: float) -> list[Admitted]:
    """Admit queued jobs into the workers that live agents have free; return them.

    Organisations share a cluster as ``fair_share`` says. Kinds that need no worker are admitted without.
    """
    admitted = _admit_light(session, agent_lost_after_s)
    for cluster in _clusters(session, agent_lost_after_s, MAX_HEADS):
        chosen = fair_share.plan(cluster.free, cluster.running, cluster.tenants, cluster.queues)
        ids = [job.id for _, job in chosen]
        admitted += session.execute(
            text(
                f"""
                UPDATE jobs SET state = 'admitted', admitted_at = now() + place * interval '1 microsecond'
                  FROM unnest(cast(:ids AS uuid[])) WITH ORDINALITY AS chosen (chosen_id, place)
                 WHERE id = chosen_id AND state = 'queued' AND desired = 'run'
             RETURNING id, org_id, cluster, {_WAITED} AS waited_s
                """
            ),
            {"ids": ids},
        ).all()
    for row in admitted:
        jobs.add_event(session, row.org_id, row.id, "The job is admitted.")
    return [Admitted(*row) for row in admitted]


def explain(session: Session, *, agent_lost_after_s: float) -> None:
    """Write for every queued job what it waits for, its position, and when it may start."""
    now = session.scalars(select(func.now())).one()
    found: dict[uuid.UUID, dict[str, Any]] = {}
    for cluster in _clusters(session, agent_lost_after_s, MAX_EXPLAINED):
        ordered = fair_share.order(cluster.tenants, cluster.queues)[:MAX_EXPLAINED]
        starts = fair_share.starts(cluster.free, cluster.running, [job for _, job in ordered])
        own: dict[uuid.UUID, int] = {}
        for place, ((org_id, job), start_s) in enumerate(zip(ordered, starts, strict=True)):
            ahead = own.get(org_id, 0)
            own[org_id] = ahead + 1
            found[job.id] = {
                "org_id": org_id,
                "position": place + 1,
                "reason": _reason(cluster, cluster.tenants[org_id], job, ahead, place - ahead),
                "starts_at": None if start_s is None else now + timedelta(seconds=start_s),
            }
    for row in session.execute(text(_ELSEWHERE), {"lost": agent_lost_after_s, "limit": MAX_EXPLAINED}):
        found[row.id] = {"org_id": row.org_id, "position": None, "reason": _obstacle(row), "starts_at": row.not_before}
    session.execute(delete(QueuePlace).where(QueuePlace.job_id.not_in(list(found))))
    if found:
        statement = insert(QueuePlace).values(
            [{"id": new_id(), "job_id": job, **place} for job, place in found.items()]
        )
        new = statement.excluded
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["job_id"],
                set_={"position": new.position, "reason": new.reason, "starts_at": new.starts_at},
            )
        )


def charge(session: Session) -> dict[tuple[str, str], int]:
    """Add what attempts took that have ended since to their organisations' usage; return how many, by (kind, outcome).

    Not where they end: all of one organisation would then wait for one row.
    """
    rows = session.execute(
        text(
            """
            WITH ended AS (
                UPDATE attempts SET charged = true WHERE ended_at IS NOT NULL AND NOT charged
             RETURNING org_id, job_id, outcome, workers * extract(epoch FROM ended_at - created_at) AS worker_seconds
            ), charged AS (
            INSERT INTO usages (id, org_id, cluster, worker_seconds)
                 SELECT gen_random_uuid(), ended.org_id, jobs.cluster, sum(ended.worker_seconds)
                   FROM ended JOIN jobs ON jobs.id = ended.job_id
                  GROUP BY ended.org_id, jobs.cluster HAVING sum(ended.worker_seconds) > 0
            ON CONFLICT (org_id, cluster) DO UPDATE SET at = now(), worker_seconds = excluded.worker_seconds
                + usages.worker_seconds * power(0.5, extract(epoch FROM now() - usages.at) / :half_life)
            )
            SELECT jobs.kind, ended.outcome, count(*) AS attempts
              FROM ended JOIN jobs ON jobs.id = ended.job_id GROUP BY jobs.kind, ended.outcome
            """
        ),
        {"half_life": HALF_LIFE_S},
    )
    return {(row.kind, row.outcome): row.attempts for row in rows}


def check_queue(session: Session, org_id: uuid.UUID) -> None:
    """Refuse another job of an organisation whose queue is full.

    Raises:
        QuotaExceededError: as many of its jobs wait as its quota allows.
    """
    limit = session.scalar(select(Quota.max_queued).where(Quota.org_id == org_id))
    if limit is None:
        return
    waiting = select(Job.id).where(
        Job.org_id == org_id,
        Job.state.in_((states.WAITING, states.QUEUED)),
        Job.kind.not_in((*jobs.LIGHT_KINDS, "gate")),
    )
    # Counted no further than needed: a queue may be long.
    count = session.scalar(select(func.count()).select_from(waiting.limit(limit).subquery())) or 0
    if count >= limit:
        raise QuotaExceededError(
            f"{count} jobs of your organisation wait already, which is its quota. Wait until some have begun, cancel "
            "some, or ask the platform's operator for more."
        )


def _admit_light(session: Session, lost_after_s: float) -> list[Any]:
    # Written out, for the partial index on them.
    light = ", ".join(f"'{kind}'" for kind in jobs.LIGHT_KINDS)
    return list(
        session.execute(
            text(
                f"""
                WITH {CLUSTERS}
                UPDATE jobs SET state = 'admitted', admitted_at = now()
                 WHERE id IN (SELECT j.id FROM jobs j JOIN clusters USING (cluster)
                               WHERE j.state = 'queued' AND j.desired = 'run' AND j.kind IN ({light})
                                 AND coalesce(j.not_before <= now(), true)
                               ORDER BY j.created_at, j.id LIMIT :limit)
                   AND state = 'queued' AND desired = 'run'
             RETURNING id, org_id, cluster, {_WAITED} AS waited_s
                """
            ),
            {"lost": lost_after_s, "limit": MAX_LIGHT},
        ).all()
    )


def _clusters(session: Session, lost_after_s: float, heads: int) -> list[_Cluster]:
    values = {"lost": lost_after_s, "light": list(jobs.LIGHT_KINDS), "half_life": HALF_LIFE_S, "heads": heads}
    running: dict[str, list[Running]] = {}
    held: dict[tuple[str, uuid.UUID], float] = {}
    for row in session.execute(text(_HELD), values):
        running.setdefault(row.cluster, []).append(Running(float(row.takes), row.left_s))
        key = row.cluster, row.org_id
        held[key] = held.get(key, 0.0) + float(row.takes)
    queues: dict[str, dict[uuid.UUID, list[Waiting]]] = {}
    for row in session.execute(text(_HEADS), values):
        job = Waiting(row.id, float(row.takes), row.expected_s)
        queues.setdefault(row.cluster, {}).setdefault(row.org_id, []).append(job)
    tenants: dict[tuple[str, uuid.UUID], Tenant] = {}
    for row in session.execute(text(TENANTS), values):
        key = row.cluster, row.org_id
        cap = float("inf") if row.max_workers is None else row.max_workers
        tenants[key] = Tenant(row.weight, row.used, held.get(key, 0.0), cap)
    return [
        _Cluster(
            row.cluster,
            float(row.workers),
            running.get(row.cluster, []),
            {org: tenants[row.cluster, org] for org in queues.get(row.cluster, {})},
            queues.get(row.cluster, {}),
        )
        for row in session.execute(text(f"WITH {CLUSTERS} SELECT * FROM clusters ORDER BY cluster"), values)
    ]


_HELD = f"""
    WITH {CLUSTERS}
    SELECT j.cluster, j.org_id, {TAKES} AS takes,
           greatest(0, j.expected_s - extract(epoch FROM now() - coalesce(j.claimed_at, now())))::float AS left_s
      FROM (SELECT jobs.*, (SELECT max(a.created_at) FROM attempts a WHERE a.job_id = jobs.id) AS claimed_at
              FROM jobs WHERE state IN ('admitted', 'starting', 'running', 'stopping') AND kind <> ALL(:light)) j
      JOIN clusters c USING (cluster)
"""

# For each organisation the first of its jobs, by the index on ranked_at, however many wait.
_HEADS = f"""
    WITH {CLUSTERS}
    SELECT c.cluster, j.org_id, j.id, j.expected_s, {TAKES} AS takes
      FROM clusters c CROSS JOIN organizations o
     CROSS JOIN LATERAL (SELECT * FROM jobs
                          WHERE state = 'queued' AND cluster = c.cluster AND org_id = o.id AND desired = 'run'
                            AND kind <> ALL(:light) AND coalesce(not_before <= now(), true)
                          ORDER BY ranked_at, id LIMIT :heads) j
     ORDER BY c.cluster, j.org_id, j.ranked_at, j.id
"""

TENANTS = f"""
    WITH {CLUSTERS}
    SELECT c.cluster, o.id AS org_id, coalesce(q.weight, 1) AS weight, q.max_workers,
           coalesce(u.worker_seconds * power(0.5, extract(epoch FROM now() - u.at) / :half_life), 0)::float AS used
      FROM clusters c CROSS JOIN organizations o
      LEFT JOIN quotas q ON q.org_id = o.id
      LEFT JOIN usages u ON u.org_id = o.id AND u.cluster = c.cluster
"""

# Queued jobs that no pass looks at, and why. Each of the three has its own index: the queue may be long.
_ELSEWHERE = f"""
    WITH RECURSIVE {CLUSTERS}, queued_in AS (
        SELECT min(cluster) AS cluster FROM jobs WHERE state = 'queued'
         UNION ALL
        SELECT (SELECT min(cluster) FROM jobs WHERE state = 'queued' AND cluster > queued_in.cluster)
          FROM queued_in WHERE cluster IS NOT NULL
    ), elsewhere AS (
        (SELECT id FROM jobs WHERE state = 'queued' AND desired <> 'run' LIMIT :limit)
         UNION
        (SELECT id FROM jobs WHERE state = 'queued' AND not_before IS NOT NULL AND not_before > now()
          ORDER BY not_before LIMIT :limit)
         UNION
        SELECT j.id FROM queued_in CROSS JOIN LATERAL
               (SELECT id FROM jobs WHERE state = 'queued' AND cluster = queued_in.cluster
                 ORDER BY org_id, ranked_at, id LIMIT :limit) j
         WHERE queued_in.cluster NOT IN (SELECT cluster FROM clusters)
    )
    SELECT j.id, j.org_id, j.cluster, j.desired, j.not_before, c.cluster IS NULL AS no_agent
      FROM elsewhere JOIN jobs j USING (id) LEFT JOIN clusters c USING (cluster)
"""


def _reason(cluster: _Cluster, tenant: Tenant, job: Waiting, own_ahead: int, others_ahead: int) -> str:
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
        return f"No agent of cluster '{row.cluster}' is alive: nothing runs there until one is started."
    if row.desired != "run":
        return f"It is about to be {'cancelled' if row.desired == 'cancel' else 'paused'}."
    return f"An attempt failed; the next one may begin at {row.not_before.astimezone(UTC):%H:%M:%S} UTC."


def _workers(count: float) -> str:
    return f"{count:.3g} worker" + ("" if count == 1 else "s")
