"""The job protocol as a small machine, every state of which is visited: what must hold, and that each guard is needed.

The machine has the moves of ``zhub.queue.jobs`` and ``zhub.queue.desired`` for one job, agents that freeze and come
back, answers that get lost, and a reaper. A guard that is taken away must be seen to break something; otherwise this
file proves nothing. The same moves on real SQL are in ``tests/integration/queue/test_jobs_machine.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from zhub import states

MAX_FENCE = 3
MAX_LOSSES = 1


@dataclass(frozen=True)
class Guards:
    """What the statements check. ``term`` is the leader's, see the last test."""

    fence: bool = True
    desired: bool = True
    one_version: bool = True
    reaper: bool = True


@dataclass(frozen=True)
class State:
    """A job's row, the versions that it made, and the attempts that some worker still believes to own it."""

    state: str = "queued"
    desired: str = "run"
    fence: int = 0
    leased: bool = False
    losses: int = 0
    cancelled: bool = False  # a cancellation was accepted
    versions: tuple[int, ...] = ()
    attempts: frozenset[int] = frozenset()

    @property
    def active(self) -> bool:
        return self.state in states.ACTIVE


def moves(now: State, guards: Guards) -> Iterator[State]:
    """Every state that one statement of somebody can bring about."""
    yield from _requested_changes(now)
    if now.state == "queued" and now.desired == "run":
        yield replace(now, state="admitted")
    if now.state == "admitted" and now.desired == "run" and now.fence < MAX_FENCE:
        fence = now.fence + 1
        yield replace(now, state="starting", fence=fence, leased=True, attempts=now.attempts | {fence})
    if now.active and now.leased:
        yield replace(now, leased=False)  # nobody renews it
    if guards.reaper and now.active and not now.leased:
        yield _released(now)
    for fence in now.attempts:
        yield from _of_attempt(now, fence, guards)


def _of_attempt(now: State, fence: int, guards: Guards) -> Iterator[State]:
    gone = replace(now, attempts=now.attempts - {fence})
    yield gone  # its process dies
    owns = now.active and (fence == now.fence or not guards.fence)
    if not owns:
        return
    seen = "stopping" if now.desired != "run" else "running" if now.state == "starting" else now.state
    yield replace(now, state=seen, leased=True)
    yield _released(gone)  # it fails
    if now.state == "stopping" or now.desired != "run":
        stopped = {"cancel": "cancelled", "pause": "paused"}.get(now.desired, "queued")
        desired = "run" if now.desired == "preempt" else now.desired
        yield replace(gone, state=stopped, desired=desired, leased=False)
    if now.desired != "cancel" or not guards.desired:
        if now.versions and guards.one_version:
            return
        done = replace(now, state="succeeded", leased=False, versions=(*now.versions, fence))
        yield done  # the commit's answer is lost: it will ask again
        yield replace(done, attempts=done.attempts - {fence})


def _released(now: State) -> State:
    ended = {"cancel": "cancelled", "pause": "paused"}.get(
        now.desired, "failed" if now.losses >= MAX_LOSSES else "queued"
    )
    desired = "run" if now.desired == "preempt" else now.desired
    return replace(now, state=ended, desired=desired, leased=False, losses=min(now.losses + 1, MAX_LOSSES))


def _requested_changes(now: State) -> Iterator[State]:
    if now.state not in states.TERMINAL:
        if now.desired != "cancel":
            yield replace(now, desired="cancel", cancelled=True)
        if now.desired in ("run", "preempt"):
            yield replace(now, desired="pause")
        if now.desired == "pause":
            yield replace(now, desired="run")
        if now.active and now.desired == "run":
            yield replace(now, desired="preempt")
    if now.desired == "cancel" and now.state in ("queued", "admitted", "paused"):
        yield replace(now, state="cancelled")
    if now.desired == "pause" and now.state in ("queued", "admitted"):
        yield replace(now, state="paused")
    if now.desired == "run" and now.state == "paused":
        yield replace(now, state="queued")


def broken(before: State, after: State) -> str | None:
    """What a move breaks, if anything."""
    if len(after.versions) > 1:
        return "two versions of one job"
    if after.versions != before.versions:
        if after.cancelled:
            return "a version after an accepted cancellation"
        if after.versions[-1] != after.fence:
            return "a version by an attempt that does not own the job"
    if after.state != before.state and after.state not in states.TRANSITIONS[before.state]:
        return "a job that had ended goes on" if before.state in states.TERMINAL else "a move that is in no table"
    if (after.state == "succeeded") != bool(after.versions):
        return "a version without a success, or a success without a version"
    if not after.active and after.leased:
        return "a lease of nobody"
    if after.fence < before.fence:
        return "a fence that falls"
    if after.active and after.fence != before.fence and before.active:
        return "a claim of a job that is owned"
    return None


def explore(guards: Guards) -> tuple[dict[State, set[State]], set[str]]:
    """Every reachable state with its next ones, and everything that some move breaks."""
    graph: dict[State, set[State]] = {}
    found: set[str] = set()
    waiting = [State()]
    while waiting:
        now = waiting.pop()
        if now in graph:
            continue
        graph[now] = set(moves(now, guards))
        for after in graph[now]:
            what = broken(now, after)
            if what is None:
                waiting.append(after)  # beyond what is broken nothing is worth knowing
            else:
                found.add(what)
    return graph, found


def stuck(graph: dict[State, set[State]]) -> list[State]:
    """States from which a job that is wanted never comes to an end, whatever happens."""
    before: dict[State, set[State]] = {}
    for now, nexts in graph.items():
        for after in nexts:
            before.setdefault(after, set()).add(now)
    good = [now for now in graph if now.state in states.TERMINAL]
    reaches = set(good)
    while good:
        for now in before.get(good.pop(), ()):
            if now not in reaches:
                reaches.add(now)
                good.append(now)
    # Claims are bounded here, so a job that has used them all may wait for another one.
    return [now for now in graph if now not in reaches and now.fence < MAX_FENCE]


def test_nothing_is_broken_in_any_state_that_can_be_reached() -> None:
    graph, found = explore(Guards())
    assert found == set()
    assert len(graph) > 500  # a machine that hardly moves would prove little


def test_from_every_state_a_job_can_come_to_its_end() -> None:
    graph, _ = explore(Guards())
    assert stuck(graph) == []


@pytest.mark.parametrize(
    ("guards", "breaks"),
    [
        (Guards(fence=False), "a version by an attempt that does not own the job"),
        (Guards(desired=False), "a version after an accepted cancellation"),
    ],
)
def test_without_a_guard_something_breaks(guards: Guards, breaks: str) -> None:
    _, found = explore(guards)
    assert breaks in found


def test_one_version_for_each_job_is_the_last_line_behind_the_fence() -> None:
    _, found = explore(Guards(one_version=False))
    assert found == set()  # while the other guards hold, nothing gets this far


def test_without_a_reaper_jobs_stay_owned_by_nobody() -> None:
    # Nobody cancels or pauses here: a request would end the wait.
    graph, _ = explore(Guards(reaper=False))
    abandoned = [now for now in graph if now.active and not now.leased and not now.attempts]
    assert abandoned and all(all(after.active for after in graph[now]) for now in abandoned)


# Two schedulers: the one that was deposed wakes up in the middle of its pass.


@dataclass(frozen=True)
class Pass:
    """A leader's pass: it has begun in a term, and seen so many free workers."""

    term: int
    free: int


@dataclass(frozen=True)
class Schedule:
    """One worker, two queued jobs, and the passes of two schedulers."""

    term: int = 1
    admitted: int = 0
    passes: tuple[Pass | None, Pass | None] = (None, None)


def schedules(now: Schedule, *, check_term: bool) -> Iterator[Schedule]:
    for place in (0, 1):
        under_way = now.passes[place]
        if under_way is None:
            begun = Pass(now.term, 1 - now.admitted)
            yield replace(now, passes=_put(now.passes, place, begun))
            continue
        # Its transaction holds the leader's row where it checks the term: no election can come in between.
        valid = under_way.term == now.term if check_term else True
        given = under_way.free if valid else 0
        yield replace(now, admitted=now.admitted + given, passes=_put(now.passes, place, None))
    if now.term < 3 and (not check_term or now.passes == (None, None)):
        yield replace(now, term=now.term + 1)


def _put(passes: tuple[Pass | None, Pass | None], place: int, one: Pass | None) -> tuple[Pass | None, Pass | None]:
    return (one, passes[1]) if place == 0 else (passes[0], one)


@pytest.mark.parametrize(("check_term", "most"), [(True, 1), (False, 2)])
def test_a_worker_is_given_out_once_because_a_pass_checks_its_term(check_term: bool, most: int) -> None:
    seen, waiting = set(), [Schedule()]
    while waiting:
        now = waiting.pop()
        if now not in seen:
            seen.add(now)
            # One scheduler leads a term: the other's pass is one of an earlier term, or none.
            waiting += [after for after in schedules(now, check_term=check_term) if _one_leader(after)]
    assert max(now.admitted for now in seen) == most


def _one_leader(now: Schedule) -> bool:
    return sum(one is not None and one.term == now.term for one in now.passes) <= 1
