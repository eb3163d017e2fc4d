"""Which queued jobs may be claimed, what was used, and what the others are told.

The leader calls all of this but what checks a request, each in its own transaction.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub import states
from zhub.admission import budgets, fair_share
from zhub.admission.fair_share import HALF_LIFE_S, Preemptible, Queues, Running, Tenant, Waiting
from zhub.database import sessions
from zhub.errors import InvalidRequestError, QuotaExceededError
from zhub.ids import new_id
from zhub.models import Agent, Job, QueuePlace, Quota
from zhub.queue import job_events, jobs

DEFAULT_CLUSTER = "default"
OFFERED_FOR = timedelta(days=1)  # a cluster that was seen so lately may come back
AGENT_LOST_AFTER_S = 30.0
MAX_HEADS = 200  # of each organisation, that a pass looks at
MAX_LIGHT = 500  # that a pass admits
MAX_EXPLAINED = 1000  # of each cluster
MAX_PREEMPTIONS, SPARED_FOR = 3, "2 hours"  # a job that was preempted so often within this time is left alone

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
    """Without those of organisations whose budget is used up, which are in ``spent``."""
    spent: Queues
    preemptible: Sequence[Preemptible]
    returning: float
    """Workers whose jobs have been told to let go of them."""

    @property
    def free(self) -> float:
        return self.workers - sum(one.workers for one in self.running)


def admit(session: Session, *, agent_lost_after_s: float) -> list[Admitted]:
    """Admit queued jobs into the workers that live agents have free; return them.

    Organisations share a cluster as ``fair_share`` says. Kinds that need no worker are admitted without, and to another
    cluster where theirs has no live agent.
    """
    ids: list[uuid.UUID] = []
    for cluster in _clusters(session, agent_lost_after_s, MAX_HEADS):
        chosen = fair_share.plan(cluster.free, cluster.running, cluster.tenants, cluster.queues)
        _reclaim(session, cluster, chosen)
        ids += [job.id for _, job in chosen]
    values = {"ids": ids, "lost": agent_lost_after_s, "limit": MAX_LIGHT}
    return [Admitted(*row) for row in session.execute(_ADMIT, values)]


# The chosen, in their order, and those that need no worker; each with its event, and all in one round trip, because
# somebody waits for the next pass. The kinds are written out, for the partial index on them.
_ADMIT = text(f"""
    WITH {CLUSTERS}, light AS (
        SELECT id FROM jobs
         WHERE state = 'queued' AND desired = 'run' AND kind IN ({", ".join(f"'{kind}'" for kind in jobs.LIGHT_KINDS)})
           AND EXISTS (SELECT FROM clusters) AND coalesce(not_before <= now(), true)
         ORDER BY created_at, id LIMIT :limit
    ), chosen AS (
        SELECT * FROM unnest(cast(:ids AS uuid[])) WITH ORDINALITY AS chosen (chosen_id, place)
         UNION ALL
        SELECT id, 0 FROM light
    ), admitted AS (
        UPDATE jobs SET state = 'admitted', admitted_at = now() + place * interval '1 microsecond',
               cluster = CASE WHEN place > 0 OR cluster IN (SELECT cluster FROM clusters) THEN cluster
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
    """Queue admitted jobs again whose cluster has had no agent for as long: who waits is told so, and holds nothing."""
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


def _reclaim(session: Session, cluster: _Cluster, admitted: Sequence[tuple[uuid.UUID, Waiting]]) -> None:
    """Have jobs let go of workers that others are owed."""
    given: dict[uuid.UUID, float] = {}
    for org_id, job in admitted:
        given[org_id] = given.get(org_id, 0.0) + job.workers
    tenants = {org: replace(one, held=one.held + given.get(org, 0.0)) for org, one in cluster.tenants.items()}
    chosen = {job.id for _, job in admitted}
    left = {org: [job for job in queue if job.id not in chosen] for org, queue in cluster.queues.items()}
    free = cluster.free - sum(given.values()) + cluster.returning
    victims = fair_share.reclaim(free, cluster.preemptible, tenants, left)
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


def explain(session: Session, *, agent_lost_after_s: float) -> None:
    """Write for every queued job what it waits for, its position, and when it may start."""
    now = sessions.now(session)
    budget = budgets.spent(session)
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
        for org_id, queue in cluster.spent.items():
            reason = f"{budget[org_id].sentence()}: the job waits for the next month, or for a larger budget."
            waiting = {"org_id": org_id, "position": None, "reason": reason, "starts_at": None}
            found |= {job.id: waiting for job in queue}
    values = {"lost": agent_lost_after_s, "limit": MAX_EXPLAINED, "light": list(jobs.LIGHT_KINDS)}
    for row in session.execute(text(_ELSEWHERE), values):
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
             RETURNING org_id, job_id, outcome, workers * extract(epoch FROM ended_at - created_at) AS worker_seconds,
                       date_trunc('month', ended_at AT TIME ZONE 'UTC') AS month, workers, created_at, ended_at
            ), in_month AS (
            INSERT INTO month_usages (id, org_id, month, worker_seconds)
                 SELECT gen_random_uuid(), org_id, month::date,
                        sum(workers * extract(epoch FROM ended_at - greatest(created_at, month AT TIME ZONE 'UTC')))
                   FROM ended WHERE worker_seconds > 0 GROUP BY org_id, month
            ON CONFLICT (org_id, month)
              DO UPDATE SET worker_seconds = month_usages.worker_seconds + excluded.worker_seconds
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


def check_cluster(session: Session, cluster: str, *, param: str) -> None:
    """Refuse a cluster that no agent has offered lately.

    Raises:
        InvalidRequestError: with this ``param``, and the clusters that there are.
    """
    # Where nobody chooses, the job may wait for the first agent ever.
    if cluster == DEFAULT_CLUSTER:
        return
    lately = Agent.seen_at > func.now() - OFFERED_FOR
    offered = list(session.scalars(select(Agent.cluster).where(lately).distinct().order_by(Agent.cluster)))
    if cluster not in offered:
        raise InvalidRequestError(
            f"No agent has offered a cluster '{cluster}' within a day. Leave 'cluster' out, or give one of: "
            f"{', '.join(offered) or 'none has been seen'}.",
            param=param,
        )


def is_alive(cluster: str) -> ColumnElement[bool]:
    """Whether a cluster has a live agent."""
    lost_after = timedelta(seconds=AGENT_LOST_AFTER_S)
    return select(Agent.id).where(Agent.cluster == cluster, Agent.seen_at > func.now() - lost_after).exists()


def _clusters(session: Session, lost_after_s: float, heads: int) -> list[_Cluster]:
    values = {"lost": lost_after_s, "light": list(jobs.LIGHT_KINDS), "half_life": HALF_LIFE_S, "heads": heads}
    found = session.execute(_FOUND, values).one()
    held: dict[str, list[_Held]] = {}
    by_org: dict[tuple[str, uuid.UUID], float] = {}
    for one in map(_Held.of, found.held):
        held.setdefault(one.cluster, []).append(one)
        key = one.cluster, one.org_id
        by_org[key] = by_org.get(key, 0.0) + one.takes
    queues: dict[str, dict[uuid.UUID, list[Waiting]]] = {}
    for head in found.heads:
        job = Waiting(uuid.UUID(head["id"]), float(head["takes"]), head["expected_s"])
        queues.setdefault(head["cluster"], {}).setdefault(uuid.UUID(head["org_id"]), []).append(job)
    tenants: dict[str, dict[uuid.UUID, Tenant]] = {}
    workers: dict[str, float] = {}
    limited = False
    for row in found.tenants:
        name, org_id = row["cluster"], uuid.UUID(row["org_id"])
        workers[name] = float(row["workers"])
        limited = limited or row["monthly_worker_hours"] is not None
        cap = float("inf") if row["max_workers"] is None else row["max_workers"]
        tenant = Tenant(row["weight"], row["used"], by_org.get((name, org_id), 0.0), cap, row["nominal"])
        tenants.setdefault(name, {})[org_id] = tenant
    spent = budgets.spent(session) if limited else {}
    return [
        _Cluster(
            name,
            workers[name],
            [Running(one.takes, one.left_s) for one in held.get(name, [])],
            tenants[name],
            {org: queue for org, queue in queues.get(name, {}).items() if org not in spent},
            {org: queue for org, queue in queues.get(name, {}).items() if org in spent},
            [one.preemptible() for one in held.get(name, []) if one.can_stop],
            sum(one.takes for one in held.get(name, []) if one.desired != "run"),
        )
        for name in sorted(workers)
    ]


@dataclass(frozen=True)
class _Held:
    """A job that takes something of its cluster."""

    id: uuid.UUID
    org_id: uuid.UUID
    cluster: str
    desired: str
    takes: float
    left_s: float | None
    ran_s: float
    can_stop: bool
    preemptions: int

    @staticmethod
    def of(row: Mapping[str, Any]) -> "_Held":
        ids = {"id": uuid.UUID(row["id"]), "org_id": uuid.UUID(row["org_id"])}
        return _Held(**{**row, **ids, "takes": float(row["takes"])})

    def preemptible(self) -> Preemptible:
        return Preemptible(self.id, self.org_id, self.takes, self.ran_s, spared=self.preemptions >= MAX_PREEMPTIONS)


# A training can stop, because it goes on from a checkpoint later.
_HELD = f"""
    SELECT j.id, j.cluster, j.org_id, j.desired, {TAKES} AS takes,
           CASE WHEN j.expected_s IS NOT NULL THEN
                greatest(0, j.expected_s - extract(epoch FROM now() - coalesce(j.claimed_at, now())))::float END
           AS left_s,
           j.kind = 'train' AND j.desired = 'run' AND j.state IN ('starting', 'running') AS can_stop,
           extract(epoch FROM now() - coalesce(j.claimed_at, now()))::float AS ran_s, j.preemptions
      FROM (SELECT jobs.*, a.claimed_at, a.preemptions
              FROM jobs LEFT JOIN LATERAL (
                   SELECT max(created_at) AS claimed_at, count(*) FILTER (
                          WHERE outcome = 'preempted' AND ended_at > now() - interval '{SPARED_FOR}') AS preemptions
                     FROM attempts WHERE job_id = jobs.id) a ON true
             WHERE state IN ('admitted', 'starting', 'running', 'stopping') AND kind <> ALL(:light)) j
      JOIN clusters c USING (cluster)
"""

# For each organisation the first of its jobs, by the index on ranked_at, however many wait.
_HEADS = f"""
    SELECT c.cluster, j.org_id, j.id, j.expected_s, {TAKES} AS takes
      FROM clusters c CROSS JOIN organizations o
     CROSS JOIN LATERAL (SELECT * FROM jobs
                          WHERE state = 'queued' AND cluster = c.cluster AND org_id = o.id AND desired = 'run'
                            AND kind <> ALL(:light) AND coalesce(not_before <= now(), true)
                          ORDER BY ranked_at, id LIMIT :heads) j
     ORDER BY c.cluster, j.org_id, j.ranked_at, j.id
"""

TENANTS = """
    SELECT c.cluster, c.workers, o.id AS org_id, coalesce(q.weight, 1) AS weight, q.max_workers,
           coalesce(q.nominal_workers, 0) AS nominal, q.monthly_worker_hours,
           coalesce(u.worker_seconds * power(0.5, extract(epoch FROM now() - u.at) / :half_life), 0)::float AS used
      FROM clusters c CROSS JOIN organizations o
      LEFT JOIN quotas q ON q.org_id = o.id
      LEFT JOIN usages u ON u.org_id = o.id AND u.cluster = c.cluster
"""

# In one statement: all as of one moment, and one round trip.
_FOUND = text(f"""
    WITH {CLUSTERS}, held AS ({_HELD}), heads AS ({_HEADS}), tenants AS ({TENANTS})
    SELECT coalesce((SELECT jsonb_agg(held) FROM held), '[]') AS held,
           coalesce((SELECT jsonb_agg(heads) FROM heads), '[]') AS heads,
           coalesce((SELECT jsonb_agg(tenants) FROM tenants), '[]') AS tenants
""")

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
                   AND (kind <> ALL(:light) OR NOT EXISTS (SELECT FROM clusters))
                 ORDER BY org_id, ranked_at, id LIMIT :limit) j
         WHERE queued_in.cluster NOT IN (SELECT cluster FROM clusters)
    )
    SELECT j.id, j.org_id, j.cluster, j.desired, j.not_before,
           c.cluster IS NULL AND (j.kind <> ALL(:light) OR NOT EXISTS (SELECT FROM clusters)) AS no_agent,
           (SELECT string_agg(cluster, ', ' ORDER BY cluster) FROM clusters) AS alive
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
        alive = f"Agents are alive of: {row.alive}." if row.alive else "Nor is one of any other cluster."
        return f"No agent of cluster '{row.cluster}' is alive: nothing runs there until one is started. {alive}"
    if row.desired != "run":
        return f"It is about to be {'cancelled' if row.desired == 'cancel' else 'paused'}."
    return f"An attempt failed; the next one may begin at {row.not_before.astimezone(UTC):%H:%M:%S} UTC."


def _workers(count: float) -> str:
    return f"{count:.3g} worker" + ("" if count == 1 else "s")
