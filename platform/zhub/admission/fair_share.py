"""Fair sharing of one cluster: which waiting jobs get its free workers, and when the others may start. Pure functions.

The tenant with the lowest ``(usage + held x HORIZON_S) / weight`` is served next. ``usage`` is its worker-seconds, each
counting half as much a day later; ``held`` is the number of workers that its jobs hold now. Held workers are charged in
advance, so that a burst of jobs does not win before it has used anything. Sources: Kueue's admission fair sharing with
its entry penalty; Slurm's fair tree.

A tenant may have a nominal share of the workers. Others borrow what it does not use. When it has jobs again, it is
served first; if no worker is free, jobs of tenants that hold more than their own nominal share are preempted.

Each tenant orders its own jobs. A job that needs more workers than are free is not passed over for ever: the workers
that become free first are reserved for it, and later jobs start before it only if they end by then or leave enough
workers (EASY backfilling, Lifka 1995).
"""

import heapq
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HORIZON_S = 600.0  # the run time of a typical job: each held worker is charged with so many seconds
HALF_LIFE_S = 86_400.0
MIN_RUN_S = 900.0  # a job that has run for less is not preempted
ROUNDING = 1e-9  # so that three thirds of a worker add up to one worker


@dataclass(frozen=True)
class Waiting:
    """A job that could run: its request for workers, a fraction if it shares one, and its expected run time."""

    id: uuid.UUID
    workers: float
    expected_s: float | None = None


@dataclass(frozen=True)
class Running:
    """A job that holds ``workers``, and how many seconds it has left; None: not known."""

    workers: float
    left_s: float | None = None


@dataclass(frozen=True)
class Preemptible:
    """A job of ``org_id`` that has run for ``ran_s`` seconds; if ``spared``, it must not be preempted now."""

    id: uuid.UUID
    org_id: uuid.UUID
    workers: float
    ran_s: float
    spared: bool = False


@dataclass(frozen=True)
class Tenant:
    """An organisation in one cluster.

    ``weight`` is its share, ``used`` its decayed worker-seconds, ``held`` the workers that its jobs hold, ``cap`` the
    most that they may hold, ``nominal`` the workers that it gets back from tenants that borrowed them.
    """

    weight: float = 1.0
    used: float = 0.0
    held: float = 0.0
    cap: float = float("inf")
    nominal: float = 0.0

    def score(self, more: float = 0.0) -> float:
        """The usage for each unit of weight. ``more``: workers in addition to those held."""
        return (self.used + (self.held + more) * HORIZON_S) / self.weight

    def rank(self, given: float, job: Waiting) -> tuple[bool, float]:
        """The tenant with the lowest rank is served next, with ``job``. ``given``: workers beside those held."""
        return not self.is_owed(given + job.workers), self.score(given)

    def is_owed(self, workers: float) -> bool:
        """Whether its nominal share allows so many more workers."""
        return self.held + workers <= self.nominal + ROUNDING

    def may_hold(self, workers: float) -> bool:
        return self.held + workers <= self.cap + ROUNDING


Queues = Mapping[uuid.UUID, Sequence[Waiting]]
"""The waiting jobs of each tenant, in the tenant's order."""


def order(tenants: Mapping[uuid.UUID, Tenant], queues: Queues) -> list[tuple[uuid.UUID, Waiting]]:
    """All waiting jobs with their tenants, in the order in which they would be served if workers were unlimited."""
    given = dict.fromkeys(queues, 0.0)
    positions = dict.fromkeys(queues, 0)
    heap = [(tenants[org].rank(0.0, queues[org][0]), org) for org in queues if queues[org]]
    heapq.heapify(heap)
    served = []
    while heap:
        _, org = heapq.heappop(heap)
        job = queues[org][positions[org]]
        served.append((org, job))
        given[org] += job.workers
        positions[org] += 1
        if positions[org] < len(queues[org]):
            heapq.heappush(heap, (tenants[org].rank(given[org], queues[org][positions[org]]), org))
    return served


def plan(
    free: float, running: Sequence[Running], tenants: Mapping[uuid.UUID, Tenant], queues: Queues
) -> list[tuple[uuid.UUID, Waiting]]:
    """The jobs to admit now, in their order, with their tenants."""
    given = dict.fromkeys(queues, 0.0)
    positions = dict.fromkeys(queues, 0)
    heap = [(tenants[org].rank(0.0, queues[org][0]), org) for org in queues if queues[org]]
    heapq.heapify(heap)
    admitted: list[tuple[uuid.UUID, Waiting]] = []
    reserved: _Reservation | None = None
    while heap:
        _, org = heapq.heappop(heap)
        job = queues[org][positions[org]]
        if not tenants[org].may_hold(given[org] + job.workers):
            continue
        fits = job.workers <= free + ROUNDING
        if fits and (reserved is None or reserved.leaves_room(job)):
            admitted.append((org, job))
            free -= job.workers
            given[org] += job.workers
            if reserved is not None:
                reserved = reserved.after(job)
        elif reserved is None:
            started = [Running(other.workers, other.expected_s) for _, other in admitted]
            reserved = _reserve(job, free, [*running, *started])
        else:
            continue
        positions[org] += 1
        if positions[org] < len(queues[org]):
            heapq.heappush(heap, (tenants[org].rank(given[org], queues[org][positions[org]]), org))
    return admitted


def reclaim(
    free: float, running: Sequence[Preemptible], tenants: Mapping[uuid.UUID, Tenant], queues: Queues
) -> list[Preemptible]:
    """The jobs to preempt, so that each tenant can start its next job if that is within its nominal share.

    ``free`` includes workers that jobs are already giving back. Borrowers lose jobs: the tenant that holds the most
    above its nominal share first, and of its jobs the one that started last. No borrower falls below its own nominal
    share, so a preempted job is never owed the worker that it lost, and workers do not go back and forth. If all
    victims together would not free enough workers for a job, none is preempted for it.
    """
    borrowed = {org: tenant.held - tenant.nominal for org, tenant in tenants.items()}
    candidates = [job for job in running if not job.spared and job.ran_s >= MIN_RUN_S]
    chosen: list[Preemptible] = []
    owed = [
        (tenants[org].score(), org) for org in queues if queues[org] and tenants[org].is_owed(queues[org][0].workers)
    ]
    for _, org in sorted(owed):
        needed = queues[org][0].workers
        victims: list[Preemptible] = []
        still_borrowed = dict(borrowed)
        while free + sum(victim.workers for victim in victims) + ROUNDING < needed:
            left = [
                job
                for job in candidates
                if job not in chosen and job not in victims and job.workers <= still_borrowed[job.org_id] + ROUNDING
            ]
            if not left:
                break
            victim = max(left, key=lambda job: (still_borrowed[job.org_id], -job.ran_s, job.id))
            victims.append(victim)
            still_borrowed[victim.org_id] -= victim.workers
        else:
            chosen += victims
            borrowed = still_borrowed
            free += sum(victim.workers for victim in victims) - needed
    return chosen


def starts(free: float, running: Sequence[Running], ordered: Sequence[Waiting]) -> list[float | None]:
    """Seconds until each of these jobs may start, in this order; None from the first job whose start is not known."""
    ends = [(float("inf") if job.left_s is None else job.left_s, job.workers) for job in running]
    heapq.heapify(ends)
    now = 0.0
    starts_s: list[float | None] = []
    for job in ordered:
        while free + ROUNDING < job.workers and ends:
            now, workers = heapq.heappop(ends)
            free += workers
        known = free + ROUNDING >= job.workers and now < float("inf")
        starts_s.append(now if known else None)
        free -= job.workers
        heapq.heappush(ends, (float("inf") if job.expected_s is None else now + job.expected_s, job.workers))
    return starts_s


@dataclass(frozen=True)
class _Reservation:
    """Workers reserved for a job from ``at_s`` on; ``spare`` more workers will be free then."""

    at_s: float
    spare: float

    def leaves_room(self, job: Waiting) -> bool:
        return self._done_by_then(job) or job.workers <= self.spare + ROUNDING

    def after(self, job: Waiting) -> "_Reservation":
        return self if self._done_by_then(job) else _Reservation(self.at_s, self.spare - job.workers)

    def _done_by_then(self, job: Waiting) -> bool:
        return job.expected_s is not None and job.expected_s <= self.at_s


def _reserve(job: Waiting, free: float, running: Sequence[Running]) -> _Reservation:
    known = [other for other in running if other.left_s is not None]
    for other in sorted(known, key=lambda other: other.left_s or 0.0):
        free += other.workers
        if free + ROUNDING >= job.workers:
            return _Reservation(other.left_s or 0.0, free - job.workers)
    # The end of some running jobs is not known. They may end at any moment, and then the workers must be free.
    return _Reservation(0.0, 0.0)
