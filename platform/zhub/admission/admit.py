"""Admission: which queued jobs may be claimed. The leader calls this, each function in its own transaction."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.admission import fair_share
from zhub.admission.fair_share import Waiting
from zhub.admission.snapshot import CLUSTERS, Cluster, read_clusters
from zhub.queue import job_events
from zhub.queue.jobs import KindNames

MAX_HEADS = 200  # jobs of each organisation that a pass reads
MAX_LIGHT = 500  # light jobs that a pass admits

# The seconds since the job could first have been admitted. NULL for a paused job: it has no time of its resumption.
_WAITED = """CASE WHEN fence = 0 OR not_before IS NOT NULL
                  THEN extract(epoch FROM now() - greatest(created_at, not_before))::float END"""


class Admitted(NamedTuple):
    """A job that was admitted. ``waited_s``: since it could first have been admitted; None if that is not known."""

    job_id: uuid.UUID
    org_id: uuid.UUID
    cluster: str
    waited_s: float | None


def admit(session: Session, kinds: KindNames, *, agent_lost_after_s: float) -> list[Admitted]:
    """Admit queued jobs to free workers of live agents; return them.

    ``fair_share`` divides a cluster among organisations. Light jobs take no worker: all are admitted, and to another
    cluster if theirs has no live agent.
    """
    ids: list[uuid.UUID] = []
    for cluster in read_clusters(session, kinds, agent_lost_after_s, MAX_HEADS):
        admitted = fair_share.plan(cluster.free, cluster.running, cluster.tenants, cluster.queues)
        _reclaim(session, cluster, admitted)
        ids += [job.id for _, job in admitted]
    values = {"ids": ids, "lost": agent_lost_after_s, "limit": MAX_LIGHT, "light": kinds.light}
    return [Admitted(*row) for row in session.execute(_ADMIT, values)]


# The chosen, in their order, and those that need no worker; each with its event, and all in one round trip, because
# somebody waits for the next pass.
# Plan at 10^6 jobs, 10^5 of them light and queued: the first :limit (500) entries of ix_jobs_light for each light kind,
# then each job by its key; 1,000 rows, 20 ms. With ANY over the kinds, all of them would be read and sorted.
_ADMIT = text(f"""
    WITH {CLUSTERS}, light AS (
        SELECT j.id FROM unnest(cast(:light AS text[])) AS light (kind) CROSS JOIN LATERAL (
               SELECT id, created_at FROM jobs
                WHERE state = 'queued' AND desired = 'run' AND kind = light.kind
                  AND EXISTS (SELECT FROM clusters) AND coalesce(not_before <= now(), true)
                ORDER BY created_at, id LIMIT :limit) j
         ORDER BY j.created_at, j.id LIMIT :limit
    ), chosen AS (
        SELECT * FROM unnest(cast(:ids AS uuid[])) WITH ORDINALITY AS chosen (chosen_id, position)
         UNION ALL
        SELECT id, 0 FROM light
    ), admitted AS (
        UPDATE jobs SET state = 'admitted', admitted_at = now() + position * interval '1 microsecond',
               cluster = CASE WHEN position > 0 OR cluster IN (SELECT cluster FROM clusters) THEN cluster
                              ELSE (SELECT min(cluster) FROM clusters) END
          FROM chosen WHERE id = chosen_id AND state = 'queued' AND desired = 'run'
     RETURNING id, org_id, cluster, {_WAITED} AS waited_s
    ), told AS (
        INSERT INTO job_events (id, org_id, job_id, level, type, message)
        SELECT gen_random_uuid(), org_id, id, 'info', 'message', 'The job is admitted.' FROM admitted
    )
    SELECT * FROM admitted
""")


def withdraw(session: Session, *, agent_lost_after_s: float) -> list[uuid.UUID]:
    """Queue admitted jobs again if their cluster has had no live agent since; return their ids.

    Such a job then holds no worker, and its explanation says that no agent is alive.
    """
    rows = session.execute(
        text(
            f"""
            WITH {CLUSTERS}
            UPDATE jobs SET state = 'queued', admitted_at = NULL
             WHERE id IN (SELECT id FROM jobs
                           WHERE state = 'admitted' AND admitted_at < now() - make_interval(secs => :lost)
                             AND cluster NOT IN (SELECT cluster FROM clusters) ORDER BY id LIMIT :limit FOR UPDATE)
         RETURNING id, org_id
            """
        ),
        {"lost": agent_lost_after_s, "limit": MAX_LIGHT},
    ).all()
    for row in rows:
        message = "No agent of its cluster is alive: the job is queued again."
        job_events.add(session, row.org_id, row.id, message, level="warn")
    return [row.id for row in rows]


def _reclaim(session: Session, cluster: Cluster, admitted: Sequence[tuple[uuid.UUID, Waiting]]) -> None:
    """Preempt jobs on workers that other organisations' nominal shares entitle them to."""
    given: dict[uuid.UUID, float] = {}
    for org_id, job in admitted:
        given[org_id] = given.get(org_id, 0.0) + job.workers
    tenants = {org: replace(tenant, held=tenant.held + given.get(org, 0.0)) for org, tenant in cluster.tenants.items()}
    admitted_ids = {job.id for _, job in admitted}
    still_queued = {org: [job for job in queue if job.id not in admitted_ids] for org, queue in cluster.queues.items()}
    free = cluster.free - sum(given.values()) + cluster.returning
    victims = fair_share.reclaim(free, cluster.preemptible, tenants, still_queued)
    rows = session.execute(
        text(
            """
            UPDATE jobs SET desired = 'preempt'
             WHERE id IN (SELECT id FROM jobs WHERE id = ANY(:ids) AND desired = 'run'
                             AND state IN ('starting', 'running') ORDER BY id FOR UPDATE)
         RETURNING id, org_id
            """
        ),
        {"ids": [victim.id for victim in victims]},
    ).all() if victims else []  # fmt: skip
    for row in rows:
        message = (
            "Another organisation wants a worker back that this job had borrowed: it goes on from a checkpoint later."
        )
        job_events.add(session, row.org_id, row.id, message, level="warn")
