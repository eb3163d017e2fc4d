"""The snapshot of a cluster that an admission pass works on: workers, running jobs and queues, all of one moment."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.admission import budgets
from zhub.admission.fair_share import HALF_LIFE_S, Preemptible, Queues, Running, Tenant, Waiting
from zhub.queue.jobs import KindNames

MAX_PREEMPTIONS, SPARED_FOR = 3, "2 hours"  # a job that was preempted so often within this time is spared


# How many workers of its cluster a job needs: a fraction of one if it shares a worker, else as many as it requests, at
# most all that the cluster has.
WORKERS_NEEDED = """CASE WHEN j.pack_key IS NOT NULL AND j.infra_failures = 0 THEN 1.0 / c.jobs_per_worker
                 ELSE least(j.workers, c.workers) END"""


CLUSTERS = """clusters AS (
    SELECT cluster, max(slots) AS workers, max(jobs_per_worker) AS jobs_per_worker FROM agents
     WHERE seen_at > now() - make_interval(secs => :lost) GROUP BY cluster
)"""


@dataclass(frozen=True)
class Cluster:
    """A cluster at the moment of a pass."""

    name: str
    workers: float
    running: Sequence[Running]
    tenants: Mapping[uuid.UUID, Tenant]
    queues: Queues
    """Without the queues of organisations whose budget is spent: those are in ``spent``."""
    spent: Queues
    preemptible: Sequence[Preemptible]
    returning: float
    """Workers whose jobs have been requested to leave them."""

    @property
    def free(self) -> float:
        return self.workers - sum(job.workers for job in self.running)


def read_clusters(session: Session, kinds: KindNames, lost_after_s: float, heads: int) -> list[Cluster]:
    """The clusters with live agents, by name; of each organisation's queue the first ``heads`` jobs."""
    values = {
        "lost": lost_after_s,
        "light": kinds.light,
        "resumable": kinds.resumable,
        "half_life": HALF_LIFE_S,
        "heads": heads,
    }
    snapshot = session.execute(_SNAPSHOT, values).one()
    held: dict[str, list[_Held]] = {}
    by_org: dict[tuple[str, uuid.UUID], float] = {}
    for held_job in map(_Held.of, snapshot.held):
        held.setdefault(held_job.cluster, []).append(held_job)
        key = held_job.cluster, held_job.org_id
        by_org[key] = by_org.get(key, 0.0) + held_job.workers
    queues: dict[str, dict[uuid.UUID, list[Waiting]]] = {}
    for head in snapshot.heads:
        waiting = Waiting(uuid.UUID(head["id"]), float(head["workers"]), head["expected_s"])
        queues.setdefault(head["cluster"], {}).setdefault(uuid.UUID(head["org_id"]), []).append(waiting)
    tenants: dict[str, dict[uuid.UUID, Tenant]] = {}
    workers: dict[str, float] = {}
    limited = False
    for row in snapshot.tenants:
        name, org_id = row["cluster"], uuid.UUID(row["org_id"])
        workers[name] = float(row["workers"])
        limited = limited or row["limited"]
        cap = float("inf") if row["max_workers"] is None else row["max_workers"]
        tenant = Tenant(row["weight"], row["used"], by_org.get((name, org_id), 0.0), cap, row["nominal"])
        tenants.setdefault(name, {})[org_id] = tenant
    spent = budgets.spent(session) if limited else {}
    return [
        Cluster(
            name,
            workers[name],
            [Running(job.workers, job.left_s) for job in held.get(name, [])],
            tenants[name],
            {org: queue for org, queue in queues.get(name, {}).items() if org not in spent},
            {org: queue for org, queue in queues.get(name, {}).items() if org in spent},
            [job.preemptible() for job in held.get(name, []) if job.can_stop],
            sum(job.workers for job in held.get(name, []) if job.desired != "run"),
        )
        for name in sorted(workers)
    ]


@dataclass(frozen=True)
class _Held:
    """An admitted or active job, with the workers that it holds."""

    id: uuid.UUID
    org_id: uuid.UUID
    cluster: str
    desired: str
    workers: float
    left_s: float | None
    ran_s: float
    can_stop: bool
    preemptions: int

    @staticmethod
    def of(row: Mapping[str, Any]) -> "_Held":
        ids = {"id": uuid.UUID(row["id"]), "org_id": uuid.UUID(row["org_id"])}
        return _Held(**{**row, **ids, "workers": float(row["workers"])})

    def preemptible(self) -> Preemptible:
        return Preemptible(self.id, self.org_id, self.workers, self.ran_s, spared=self.preemptions >= MAX_PREEMPTIONS)


_HELD = f"""
    SELECT j.id, j.cluster, j.org_id, j.desired, {WORKERS_NEEDED} AS workers,
           CASE WHEN j.expected_s IS NOT NULL THEN
                greatest(0, j.expected_s - extract(epoch FROM now() - coalesce(j.claimed_at, now())))::float END
           AS left_s,
           j.kind = ANY(:resumable) AND j.desired = 'run' AND j.state IN ('starting', 'running') AS can_stop,
           extract(epoch FROM now() - coalesce(j.claimed_at, now()))::float AS ran_s, j.preemptions
      FROM (SELECT jobs.*, a.claimed_at, a.preemptions
              FROM jobs LEFT JOIN LATERAL (
                   SELECT max(created_at) AS claimed_at, count(*) FILTER (
                          WHERE outcome = 'preempted' AND ended_at > now() - interval '{SPARED_FOR}') AS preemptions
                     FROM attempts WHERE job_id = jobs.id) a ON true
             WHERE state IN ('admitted', 'starting', 'running', 'stopping') AND kind <> ALL(:light)) j
      JOIN clusters c USING (cluster)
"""


# The first jobs of each organisation, by the index on ranked_at: the cost does not depend on the queue's length.
_HEADS = f"""
    SELECT c.cluster, j.org_id, j.id, j.expected_s, {WORKERS_NEEDED} AS workers
      FROM clusters c CROSS JOIN organizations o
     CROSS JOIN LATERAL (SELECT * FROM jobs
                          WHERE state = 'queued' AND cluster = c.cluster AND org_id = o.id AND desired = 'run'
                            AND kind <> ALL(:light) AND coalesce(not_before <= now(), true)
                          ORDER BY ranked_at, id LIMIT :heads) j
     ORDER BY c.cluster, j.org_id, j.ranked_at, j.id
"""


TENANTS = """
    SELECT c.cluster, c.workers, o.id AS org_id, coalesce(q.weight, 1) AS weight, q.max_workers,
           coalesce(q.nominal_workers, 0) AS nominal,
           num_nonnulls(q.monthly_worker_hours, q.monthly_budget) > 0 AS limited,
           coalesce(u.worker_seconds * power(0.5, extract(epoch FROM now() - u.at) / :half_life), 0)::float AS used
      FROM clusters c CROSS JOIN organizations o
      LEFT JOIN quotas q ON q.org_id = o.id
      LEFT JOIN usages u ON u.org_id = o.id AND u.cluster = c.cluster
"""


# In one statement: all as of one moment, and one round trip.
# Plan at 10^6 jobs, 3 * 10^5 of them queued by 20 organisations: a bitmap of ix_jobs_held with the attempts of each job
# by their key, and of each organisation the first entries of ix_jobs_rank until :heads (200) need a worker; 6,500 rows,
# 40 ms.
_SNAPSHOT = text(f"""
    WITH {CLUSTERS}, held AS ({_HELD}), heads AS ({_HEADS}), tenants AS ({TENANTS})
    SELECT coalesce((SELECT jsonb_agg(held) FROM held), '[]') AS held,
           coalesce((SELECT jsonb_agg(heads) FROM heads), '[]') AS heads,
           coalesce((SELECT jsonb_agg(tenants) FROM tenants), '[]') AS tenants
""")
