"""Which waiting jobs get the free workers of one cluster, and when the others may expect theirs. Pure functions.

Tenants are served by what they have used: the one with the lowest ``(usage + held x HORIZON_S) / weight`` is next,
where usage are its worker-seconds, each counting half as much a day later, and held are the workers that its jobs hold
now. Charging those at once keeps a burst from winning before it has used anything. Sources: Kueue's admission fair
sharing with its entry penalty; Slurm's fair tree.

A tenant may have a nominal share of the workers. What it does not use others borrow; as soon as it wants it back it is
served first, and where nothing is free, jobs of those who hold more than their own nominal share are preempted.

Within a tenant the order is its own. A job too large for what is free is not passed for ever: the workers that will be
free first are reserved for it, and others go before it only if they are done by then or leave it enough (Lifka's EASY
back-filling, 1995).
"""

import heapq
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HORIZON_S = 600.0  # the run time of a typical job: what a worker that is held counts beside what was used
HALF_LIFE_S = 86_400.0
MIN_RUN_S = 900.0  # that a job has run before it can be preempted
ROUNDING = 1e-9  # thirds of a worker add up to a worker


@dataclass(frozen=True)
class Waiting:
    """A job that could run. ``workers`` is what it takes, a part of one where it shares; ``expected_s`` how long."""

    id: uuid.UUID
    workers: float
    expected_s: float | None = None


@dataclass(frozen=True)
class Running:
    """A job that holds ``workers``, and how much longer it may; None: nobody knows."""

    workers: float
    left_s: float | None = None


@dataclass(frozen=True)
class Preemptible:
    """A job that runs, of ``org_id``, for ``ran_s`` seconds so far; ``spared``: it must not be preempted now."""

    id: uuid.UUID
    org_id: uuid.UUID
    workers: float
    ran_s: float
    spared: bool = False


@dataclass(frozen=True)
class Tenant:
    """An organisation in one cluster: its share, what it has used (decayed worker-seconds), holds, and may hold.

    ``nominal`` are the workers that it gets back from whoever borrowed them.
    """

    weight: float = 1.0
    used: float = 0.0
    held: float = 0.0
    cap: float = float("inf")
    nominal: float = 0.0

    def score(self, more: float = 0.0) -> float:
        """``more``: workers beside those held."""
        return (self.used + (self.held + more) * HORIZON_S) / self.weight

    def rank(self, given: float, job: Waiting) -> tuple[bool, float]:
        """Who has the lowest is served next, with ``job``; ``given``: workers beside those held."""
        return not self.is_owed(given + job.workers), self.score(given)

    def is_owed(self, workers: float) -> bool:
        """Whether so many more are within its nominal share."""
        return self.held + workers <= self.nominal + ROUNDING

    def may_hold(self, workers: float) -> bool:
        return self.held + workers <= self.cap + ROUNDING


Queues = Mapping[uuid.UUID, Sequence[Waiting]]
"""The waiting jobs of each tenant, in the tenant's order."""


def order(tenants: Mapping[uuid.UUID, Tenant], queues: Queues) -> list[tuple[uuid.UUID, Waiting]]:
    """All waiting jobs in the order in which they are served, with their tenants, as if none had to wait."""
    given = dict.fromkeys(queues, 0.0)
    places = dict.fromkeys(queues, 0)
    heap = [(tenants[org].rank(0.0, queues[org][0]), org) for org in queues if queues[org]]
    heapq.heapify(heap)
    found = []
    while heap:
        _, org = heapq.heappop(heap)
        job = queues[org][places[org]]
        found.append((org, job))
        given[org] += job.workers
        places[org] += 1
        if places[org] < len(queues[org]):
            heapq.heappush(heap, (tenants[org].rank(given[org], queues[org][places[org]]), org))
    return found


def plan(
    free: float, running: Sequence[Running], tenants: Mapping[uuid.UUID, Tenant], queues: Queues
) -> list[tuple[uuid.UUID, Waiting]]:
    """The jobs to admit now, in their order, with their tenants."""
    given = dict.fromkeys(queues, 0.0)
    places = dict.fromkeys(queues, 0)
    heap = [(tenants[org].rank(0.0, queues[org][0]), org) for org in queues if queues[org]]
    heapq.heapify(heap)
    admitted: list[tuple[uuid.UUID, Waiting]] = []
    reserved: _Reservation | None = None
    while heap:
        _, org = heapq.heappop(heap)
        job = queues[org][places[org]]
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
            reserved = _reserve(job, free, [*running, *(Running(one.workers, one.expected_s) for _, one in admitted)])
        else:
            continue
        places[org] += 1
        if places[org] < len(queues[org]):
            heapq.heappush(heap, (tenants[org].rank(given[org], queues[org][places[org]]), org))
    return admitted


def reclaim(
    free: float, running: Sequence[Preemptible], tenants: Mapping[uuid.UUID, Tenant], queues: Queues
) -> list[Preemptible]:
    """The jobs to preempt, so that tenants get the next job that their nominal share owes them.

    ``free`` counts what is being given back already. Borrowers give, who holds the most above its nominal share first,
    each the job that began last, and none falls below its nominal share: so no job that was preempted is ever owed the
    worker it lost, and nothing goes back and forth. Nothing is preempted that would not be enough.
    """
    above = {org: tenant.held - tenant.nominal for org, tenant in tenants.items()}
    candidates = [one for one in running if not one.spared and one.ran_s >= MIN_RUN_S]
    chosen: list[Preemptible] = []
    owed = [
        (tenants[org].score(), org) for org in queues if queues[org] and tenants[org].is_owed(queues[org][0].workers)
    ]
    for _, org in sorted(owed):
        needed = queues[org][0].workers
        found: list[Preemptible] = []
        spent = dict(above)
        while free + sum(one.workers for one in found) + ROUNDING < needed:
            left = [
                one
                for one in candidates
                if one not in chosen and one not in found and one.workers <= spent[one.org_id] + ROUNDING
            ]
            if not left:
                break
            victim = max(left, key=lambda one: (spent[one.org_id], -one.ran_s, one.id))
            found.append(victim)
            spent[victim.org_id] -= victim.workers
        else:
            chosen += found
            above = spent
            free += sum(one.workers for one in found) - needed
    return chosen


def starts(free: float, running: Sequence[Running], ordered: Sequence[Waiting]) -> list[float | None]:
    """Seconds until each of these jobs may start, one after the other; None from the first that nobody can tell."""
    ends = [(float("inf") if one.left_s is None else one.left_s, one.workers) for one in running]
    heapq.heapify(ends)
    now = 0.0
    found: list[float | None] = []
    for job in ordered:
        while free + ROUNDING < job.workers and ends:
            now, workers = heapq.heappop(ends)
            free += workers
        known = free + ROUNDING >= job.workers and now < float("inf")
        found.append(now if known else None)
        free -= job.workers
        heapq.heappush(ends, (float("inf") if job.expected_s is None else now + job.expected_s, job.workers))
    return found


@dataclass(frozen=True)
class _Reservation:
    """Workers kept for a job: from ``at_s`` on, when ``spare`` beside them will be free."""

    at_s: float
    spare: float

    def leaves_room(self, job: Waiting) -> bool:
        return self._done_by_then(job) or job.workers <= self.spare + ROUNDING

    def after(self, job: Waiting) -> "_Reservation":
        return self if self._done_by_then(job) else _Reservation(self.at_s, self.spare - job.workers)

    def _done_by_then(self, job: Waiting) -> bool:
        return job.expected_s is not None and job.expected_s <= self.at_s


def _reserve(job: Waiting, free: float, running: Sequence[Running]) -> _Reservation:
    known = [one for one in running if one.left_s is not None]
    for one in sorted(known, key=lambda one: one.left_s or 0.0):
        free += one.workers
        if free + ROUNDING >= job.workers:
            return _Reservation(one.left_s or 0.0, free - job.workers)
    # Some end at a time that nobody knows, which may be the next moment: nothing may stand in the way then.
    return _Reservation(0.0, 0.0)
