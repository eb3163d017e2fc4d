"""The metrics that the leader exports from SQL: the queue, the workers, and each organisation's share of them.

Only the leader reads the database. It reads at most once in ``FRESH_S`` seconds, for at most a fraction ``MAX_LOAD`` of
the time, in one transaction whose statements the database cancels after ``STATEMENT_TIMEOUT``. A scrape waits for
``WAIT_S`` seconds and then returns without these metrics.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from zhub import states
from zhub.admission.fair_share import HALF_LIFE_S, HORIZON_S
from zhub.admission.limits import AGENT_LOST_AFTER_S
from zhub.admission.snapshot import CLUSTERS, TENANTS, WORKERS_NEEDED
from zhub.database.sessions import system_session
from zhub.errors import UnavailableError
from zhub.models import Checkpoint, Job, Leader, Organization
from zhub.process.metrics import database_answers
from zhub.queue import leadership
from zhub.queue.jobs import KindNames

FRESH_S = 5.0
MAX_LOAD = 0.05
WAIT_S = 2.0
STATEMENT_TIMEOUT = "2s"
MAX_ORGANIZATIONS = 100  # with a label of their own: each label costs Prometheus memory for ever
OTHER = "other"


@dataclass(frozen=True)
class Workers:
    """The workers of a cluster: its live agents, its workers, those reserved for admitted jobs, and the busy ones."""

    agents: int
    total: float
    reserved: float
    busy: float


@dataclass(frozen=True)
class QueueState:
    """The state that a scrape reads. Organisations are ids, or ``other``."""

    names: dict[str, str] = field(default_factory=dict)
    depth: dict[tuple[str, str], int] = field(default_factory=dict)
    """(organisation, kind) → queued jobs."""
    oldest_s: float = 0.0
    workers: dict[str, Workers] = field(default_factory=dict)
    due: dict[tuple[str, str], float] = field(default_factory=dict)
    """(cluster, organisation) → its fraction of the weights of all that wait, hold or have used workers there."""
    had: dict[tuple[str, str], float] = field(default_factory=dict)
    """(cluster, organisation) → its fraction of the workers that they have used and hold."""
    unswept: int = 0


def read_queue(session: Session, kinds: KindNames) -> QueueState:
    """The state of all queues now, in a fixed number of statements."""
    values = {"lost": AGENT_LOST_AFTER_S, "light": kinds.light, "half_life": HALF_LIFE_S}
    queued = session.execute(
        select(Job.cluster, Job.org_id, Job.kind, func.count().label("jobs"))
        .where(Job.state == states.QUEUED)
        .group_by(Job.cluster, Job.org_id, Job.kind)
    ).all()
    held = session.execute(text(_HELD), values).all()
    shares = _Shares()
    for row in held:
        shares.hold(row.cluster, row.org_id, row.reserved)
    for row in queued:
        shares.wait(row.cluster, row.org_id, row.jobs, needs_worker=row.kind not in kinds.light)
    for row in session.execute(text(f"WITH {CLUSTERS} {TENANTS}"), values):
        shares.use(row.cluster, row.org_id, row.weight, row.used)
    label = shares.labels()
    depth: dict[tuple[str, str], int] = {}
    for row in queued:
        key = label(row.org_id), row.kind
        depth[key] = depth.get(key, 0) + row.jobs
    due, had = shares.ratios()
    listed = [org for org in shares.depth if label(org) != OTHER]
    return QueueState(
        names={str(id_): name for id_, name in session.execute(_NAMES.where(Organization.id.in_(listed)))},
        depth=depth,
        oldest_s=session.scalar(text(_OLDEST), values) or 0.0,
        workers={
            row.cluster: Workers(
                row.agents,
                float(row.workers),
                sum(held_row.reserved for held_row in held if held_row.cluster == row.cluster),
                sum(held_row.busy for held_row in held if held_row.cluster == row.cluster),
            )
            for row in session.execute(text(_WORKERS), values)
        },
        due=due,
        had=had,
        unswept=session.scalar(_UNSWEPT) or 0,
    )


class QueueCollector(Collector):
    """``read_queue`` as metrics, while this process leads."""

    def __init__(self, engine: Engine, kinds: KindNames, term: Callable[[], int | None]) -> None:
        """``term`` returns the term in which this process leads, None while it does not."""
        self._engine, self._kinds = engine, kinds
        self._term = term
        self._changed = threading.Condition()
        self._reading = False
        self._state: QueueState | None = None
        self._fresh_until = float("-inf")

    def describe(self) -> list[Metric]:
        """Return nothing: the registration of this collector must not cause a read."""
        return []

    def collect(self) -> Iterable[Metric]:
        if self._term() is None:
            return []
        state = self._fresh()
        if state is None:
            database_answers.failed()
            return []
        return families(state)

    def _fresh(self) -> QueueState | None:
        with self._changed:
            if time.monotonic() < self._fresh_until:
                return self._state
            if not self._reading:
                self._reading = True
                # In a daemon thread, which blocks nothing if the database is frozen and never answers.
                threading.Thread(target=self._read, daemon=True, name="queue-metrics").start()
            self._changed.wait_for(lambda: not self._reading, timeout=WAIT_S)
            return None if self._reading else self._state

    def _read(self) -> None:
        state, began = None, time.monotonic()
        try:
            with system_session(self._engine) as session:
                session.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
                # A leader that was replaced, and does not know it yet, must not export beside its successor.
                leads = select(Leader.term).where(Leader.name == leadership.SCHEDULER, Leader.lease_until > func.now())
                is_leading = session.scalar(leads) == self._term()
                state = read_queue(session, self._kinds) if is_leading else QueueState()
        except UnavailableError:
            pass  # the scheduler's loop logs it, and the scrape counts it
        finally:
            with self._changed:
                now = time.monotonic()
                rest_s = (now - began) / MAX_LOAD if state else 0.0
                self._state, self._fresh_until = state, now + max(FRESH_S, rest_s)
                self._reading = False
                self._changed.notify_all()


def families(state: QueueState) -> list[Metric]:
    """The metrics of a state."""
    seconds = GaugeMetricFamily(
        "zhub_queue_oldest_seconds",
        "How long the job has existed that is served first of its organisation, the longest of all.",
        value=state.oldest_s,
    )
    unswept = GaugeMetricFamily(
        "zhub_checkpoints_unswept", "Deleted checkpoints whose objects are still in the store.", value=state.unswept
    )
    return [
        _gauge("zhub_queue_depth", "Queued jobs.", ("org_id", "kind"), state.depth),
        seconds,
        _gauge("zhub_agents_alive", "Agents that were seen lately.", ("cluster",), _by_cluster(state, "agents")),
        _gauge("zhub_workers", "Workers with torch that live agents offer.", ("cluster",), _by_cluster(state, "total")),
        _gauge(
            "zhub_workers_reserved",
            "Workers that admitted and running jobs take.",
            ("cluster",),
            _by_cluster(state, "reserved"),
        ),
        _gauge("zhub_workers_busy", "Workers that running jobs take.", ("cluster",), _by_cluster(state, "busy")),
        _gauge(
            "zhub_fair_share_due_ratio",
            "An organisation's part of the weights of all that wait, hold or have used something.",
            ("cluster", "org_id"),
            state.due,
        ),
        _gauge(
            "zhub_fair_share_had_ratio",
            "An organisation's part of what all have used lately and hold now.",
            ("cluster", "org_id"),
            state.had,
        ),
        _gauge(
            "zhub_organization_info",
            "The name of an organisation, to join with org_id; always 1.",
            ("org_id", "name"),
            {pair: 1 for pair in state.names.items()},
        ),
        unswept,
    ]


class _Shares:
    """Collects by cluster what each organisation waits for, holds and has used, and computes their shares."""

    def __init__(self) -> None:
        self.depth: dict[uuid.UUID, int] = {}
        self._held: dict[tuple[str, uuid.UUID], float] = {}
        self._waits: set[tuple[str, uuid.UUID]] = set()
        self._competing: dict[tuple[str, uuid.UUID], tuple[float, float]] = {}

    def wait(self, cluster: str, org: uuid.UUID, count: int, *, needs_worker: bool) -> None:
        self.depth[org] = self.depth.get(org, 0) + count
        if needs_worker:
            self._waits.add((cluster, org))

    def hold(self, cluster: str, org: uuid.UUID, workers: float) -> None:
        self._held[cluster, org] = workers

    def use(self, cluster: str, org: uuid.UUID, weight: float, used: float) -> None:
        """Call this after ``wait`` and ``hold``: an organisation counts if it waits, holds, or has used a second."""
        charge = used + self._held.get((cluster, org), 0.0) * HORIZON_S
        if charge >= 1 or (cluster, org) in self._waits:
            self._competing[cluster, org] = weight, charge
            self.depth.setdefault(org, 0)

    def labels(self) -> Callable[[uuid.UUID], str]:
        """A function to an organisation's label: its id, or ``other`` if it is not among the first MAX_ORGANIZATIONS.

        Organisations are ordered by the length of their queue, then by what they have used and hold.
        """
        charges: dict[uuid.UUID, float] = {}
        for (_, org), (_, charge) in self._competing.items():
            charges[org] = charges.get(org, 0.0) + charge
        ranked = sorted(self.depth, key=lambda org: (-self.depth[org], -charges.get(org, 0.0), org))
        listed = set(ranked[:MAX_ORGANIZATIONS])
        return lambda org: str(org) if org in listed else OTHER

    def ratios(self) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
        """The fractions that are due and that were used, by (cluster, label); those of a cluster add up to one."""
        label = self.labels()
        weights: dict[str, float] = {}
        charges: dict[str, float] = {}
        for (cluster, _), (weight, charge) in self._competing.items():
            weights[cluster] = weights.get(cluster, 0.0) + weight
            charges[cluster] = charges.get(cluster, 0.0) + charge
        due: dict[tuple[str, str], float] = {}
        had: dict[tuple[str, str], float] = {}
        for (cluster, org), (weight, charge) in self._competing.items():
            key = cluster, label(org)
            due[key] = due.get(key, 0.0) + weight / weights[cluster]
            had[key] = had.get(key, 0.0) + (charge / charges[cluster] if charges[cluster] else 0.0)
        return due, had


def _by_cluster(state: QueueState, attribute: str) -> dict[tuple[str], float]:
    return {(cluster,): float(getattr(workers, attribute)) for cluster, workers in state.workers.items()}


def _gauge(name: str, documentation: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


_HELD = f"""
    WITH {CLUSTERS}
    SELECT j.cluster, j.org_id, sum({WORKERS_NEEDED})::float AS reserved,
           coalesce(sum({WORKERS_NEEDED}) FILTER (WHERE j.state <> 'admitted'), 0)::float AS busy
      FROM jobs j JOIN clusters c USING (cluster)
     WHERE j.state IN ('admitted', 'starting', 'running', 'stopping') AND j.kind <> ALL(:light)
     GROUP BY j.cluster, j.org_id
"""
_WORKERS = """
    SELECT cluster, count(*) AS agents, max(slots) AS workers FROM agents
     WHERE seen_at > now() - make_interval(secs => :lost) GROUP BY cluster
"""
# The first job of each organisation, by the index on ranked_at.
_OLDEST = f"""
    WITH {CLUSTERS}
    SELECT extract(epoch FROM now() - min(j.created_at))::float
      FROM clusters c CROSS JOIN organizations o
     CROSS JOIN LATERAL (SELECT created_at FROM jobs WHERE state = 'queued' AND cluster = c.cluster AND org_id = o.id
                          ORDER BY ranked_at, id LIMIT 1) j
"""
_NAMES = select(Organization.id, Organization.name)
_UNSWEPT = select(func.count()).select_from(Checkpoint).where(Checkpoint.deleted_at.is_not(None))
