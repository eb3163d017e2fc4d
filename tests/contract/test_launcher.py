"""Where attempts run: threads of this process and detached Ray actors keep the same promises to the agent.

Each test runs once on threads and once on Ray, both with the same stand-in for training.
"""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: TID251
from playing import play

from zhub_workers.agent.launcher import Launcher, ThreadLauncher, WorkerLostError, WorkerSilentError
from zhub_workers.agent.ray_launcher import RayLauncher
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour

LEASE_S = 60.0
Until = Callable[..., Any]


@pytest.fixture(scope="module", params=["threads", pytest.param("ray", marks=pytest.mark.ray)])
def shared(request: pytest.FixtureRequest) -> Launcher:
    """One worker that trains, and its launcher."""
    if request.param == "threads":
        return ThreadLauncher({"light": play, "torch": play}, jobs_per_worker=2)
    request.getfixturevalue("playing_cluster")
    return RayLauncher(Flavour(), slots=1, jobs_per_worker=2, device="cpu", log_format="text")


@pytest.fixture
def launcher(shared: Launcher, until: Until) -> Iterator[Launcher]:
    """The launcher, with its worker free."""

    def ready() -> int:
        shared.restore_pool_sizes()
        return shared.free("torch") > 0

    until(ready, timeout_s=90)
    yield shared
    for key in shared.running():
        shared.kill(key)


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[str], Attempt]:
    def make(do: str) -> Attempt:
        spec = {"do": do, "end": str(tmp_path / "end")}
        return Attempt(AttemptKey(uuid.uuid4(), 1), uuid.uuid4(), spec, "file:///nowhere", tmp_path, None)

    return make


@pytest.fixture
def ended(launcher: Launcher, until: Until) -> Callable[[AttemptKey], AttemptStatus]:
    """Poll until an attempt has ended."""

    def wait(key: AttemptKey) -> AttemptStatus:
        until(lambda: launcher.poll(key, 0, LEASE_S).state != "running")
        return launcher.poll(key, 0, LEASE_S)

    return wait


@pytest.fixture
def going_on(launcher: Launcher, attempt: Callable[[str], Attempt], until: Until) -> Attempt:
    """An attempt that has begun and will not end by itself."""
    made = attempt("go on")
    launcher.start("torch", made, LEASE_S)
    until(lambda: launcher.poll(made.key, 0, LEASE_S).events)
    return made


Ended = Callable[[AttemptKey], AttemptStatus]


def test_a_result_comes_back(launcher: Launcher, attempt: Callable[[str], Attempt], ended: Ended) -> None:
    made = attempt("succeed")
    launcher.start("torch", made, LEASE_S)
    status = ended(made.key)
    assert (status.state, status.failure) == ("succeeded", None)
    assert status.result is not None and status.result["key_prefix"] == made.key_prefix


def test_a_failure_comes_back_with_its_cause(
    launcher: Launcher, attempt: Callable[[str], Attempt], ended: Ended
) -> None:
    made = attempt("fail")
    launcher.start("torch", made, LEASE_S)
    status = ended(made.key)
    assert status.state == "failed" and status.failure is not None and status.failure.code == "prompt_too_long"


def test_an_attempt_that_was_asked_to_stop_is_neither_a_result_nor_a_failure(
    launcher: Launcher, going_on: Attempt, ended: Ended
) -> None:
    launcher.request_stop(going_on.key)
    status = ended(going_on.key)
    assert (status.state, status.result, status.failure) == ("stopped", None, None)


def test_an_attempt_whose_worker_was_killed_is_lost(launcher: Launcher, going_on: Attempt) -> None:
    launcher.kill(going_on.key)
    with pytest.raises(WorkerLostError):
        launcher.poll(going_on.key, 0, LEASE_S)


def test_an_attempt_whose_lease_runs_out_is_lost(launcher: Launcher, going_on: Attempt, until: Until) -> None:
    def lost() -> bool:
        try:
            launcher.poll(going_on.key, 0, 0.001)
        except WorkerLostError:
            return True
        return False

    until(lost, timeout_s=30)


def test_an_attempt_that_never_began_is_lost(launcher: Launcher, attempt: Callable[[str], Attempt]) -> None:
    with pytest.raises(WorkerLostError):
        launcher.poll(attempt("succeed").key, 0, LEASE_S)


def test_a_worker_that_was_killed_is_replaced(
    launcher: Launcher, going_on: Attempt, attempt: Callable[[str], Attempt], ended: Ended, until: Until
) -> None:
    launcher.kill(going_on.key)

    def free() -> int:
        launcher.restore_pool_sizes()
        return launcher.free("torch") > 0

    until(free, timeout_s=90)
    made = attempt("succeed")
    launcher.start("torch", made, LEASE_S)
    assert ended(made.key).state == "succeeded"


def test_a_worker_that_another_agent_has_given_something_to_meanwhile_refuses_and_is_kept(
    launcher: Launcher, attempt: Callable[[str], Attempt], until: Until
) -> None:
    if not isinstance(launcher, RayLauncher):
        pytest.skip("no other process reaches the workers of this one")
    (name,) = [name for name in ray_cluster.names() if ray_cluster.pool_of(name, "default") == "torch"]
    theirs, ours = attempt("succeed"), attempt("succeed")
    worker: Any = ray.get_actor(name, namespace=ray_cluster.NAMESPACE)
    ray.get(worker.start.remote(theirs, LEASE_S))
    with pytest.raises(WorkerLostError, match="refused to start"):
        launcher.start("torch", ours, LEASE_S)
    assert launcher.running() == {}
    assert [held.key for held in ray.get(worker.held.remote())] == [theirs.key]
    until(lambda: ray.get(worker.poll.remote(theirs.key, 0, LEASE_S)).state == "succeeded")
    ray.get(worker.forget.remote(theirs.key))


def test_the_lease_of_a_killed_worker_does_not_end_its_replacement(
    launcher: Launcher, attempt: Callable[[str], Attempt], until: Until
) -> None:
    first, second = attempt("go on"), attempt("go on")
    launcher.start("torch", first, 0.001)
    launcher.kill(first.key)

    def free() -> int:
        launcher.restore_pool_sizes()
        return launcher.free("torch") > 0

    until(free, timeout_s=90)
    launcher.start("torch", second, LEASE_S)
    give_up = time.monotonic() + 2.5  # the watch of a lease looks once a second
    until(lambda: launcher.poll(second.key, 0, LEASE_S).state == "running" and time.monotonic() > give_up)


def test_starting_an_attempt_again_changes_nothing(launcher: Launcher, going_on: Attempt) -> None:
    name = launcher.running()[going_on.key]
    assert launcher.start("torch", going_on, LEASE_S) == name
    events = launcher.poll(going_on.key, 0, LEASE_S).events
    assert ([event.message for event in events], launcher.running()) == (["begun"], {going_on.key: name})


def test_a_busy_worker_takes_no_second_attempt(
    launcher: Launcher, going_on: Attempt, attempt: Callable[[str], Attempt]
) -> None:
    with pytest.raises(WorkerLostError):
        launcher.start("torch", attempt("succeed"), LEASE_S)
    assert list(launcher.running()) == [going_on.key]


def test_a_running_attempt_is_shown_with_its_worker(launcher: Launcher, attempt: Callable[[str], Attempt]) -> None:
    made = attempt("go on")
    name = launcher.start("torch", made, LEASE_S)
    assert launcher.running() == {made.key: name}


def test_a_worker_is_busy_until_the_end_of_its_attempt_is_recorded(
    launcher: Launcher, attempt: Callable[[str], Attempt], ended: Ended
) -> None:
    made = attempt("succeed")
    launcher.start("torch", made, LEASE_S)
    ended(made.key)
    before = launcher.free("torch")
    launcher.forget(made.key)
    assert (before, launcher.free("torch"), launcher.running()) == (0, 1, {})


def test_an_attempt_that_goes_on_is_not_forgotten(launcher: Launcher, going_on: Attempt) -> None:
    launcher.forget(going_on.key)
    assert launcher.poll(going_on.key, 0, LEASE_S).state == "running"


def test_events_are_told_from_where_the_caller_stopped(
    launcher: Launcher, attempt: Callable[[str], Attempt], ended: Ended
) -> None:
    made = attempt("succeed")
    launcher.start("torch", made, LEASE_S)
    ended(made.key)
    told = [[(event.seq, event.message) for event in launcher.poll(made.key, n, LEASE_S).events] for n in (0, 1, 2)]
    assert told == [[(1, "begun"), (2, "done")], [(2, "done")], []]


def test_an_attempt_of_another_fence_is_another_attempt(launcher: Launcher, going_on: Attempt) -> None:
    with pytest.raises(WorkerLostError):
        launcher.poll(AttemptKey(going_on.key.job_id, 2), 0, LEASE_S)


@pytest.mark.ray
@pytest.mark.parametrize("shared", ["ray"], indirect=True)
def test_an_attempt_whose_process_dies_is_lost(launcher: Launcher, going_on: Attempt, until: Until) -> None:
    (begun,) = launcher.poll(going_on.key, 0, LEASE_S).events
    assert begun.data is not None
    os.kill(begun.data["pid"], signal.SIGKILL)

    def lost() -> bool:
        try:
            launcher.poll(going_on.key, 0, LEASE_S)
        except WorkerLostError:
            return True
        except WorkerSilentError:
            return False
        return False

    until(lost, timeout_s=60)


@pytest.mark.ray
@pytest.mark.parametrize("shared", ["ray"], indirect=True)
def test_a_new_launcher_adopts_what_the_last_one_started(launcher: Launcher, going_on: Attempt, until: Until) -> None:
    second = RayLauncher(Flavour(), slots=1, jobs_per_worker=2, device="cpu", log_format="text")
    assert second.running() == launcher.running()
    Path(going_on.spec["end"]).touch()
    until(lambda: second.poll(going_on.key, 0, LEASE_S).state == "succeeded")


# Packs: small jobs on one base share a worker, here two of them


@pytest.fixture
def pair(launcher: Launcher, attempt: Callable[[str], Attempt], until: Until) -> tuple[Attempt, Attempt]:
    """Two attempts of one pack that have begun and will not end by themselves."""
    first, second = (replace(attempt("go on"), pack_key="basis") for _ in range(2))
    for made in (first, second):
        launcher.start("torch", made, LEASE_S)
    until(lambda: all(launcher.poll(made.key, 0, LEASE_S).events for made in (first, second)))
    return first, second


def test_attempts_of_one_pack_run_in_one_worker(launcher: Launcher, pair: tuple[Attempt, Attempt]) -> None:
    running = launcher.running()
    assert set(running) == {made.key for made in pair} and len(set(running.values())) == 1


def test_a_pack_is_shown_while_it_has_room(launcher: Launcher, attempt: Callable[[str], Attempt]) -> None:
    shown = [launcher.packs("torch")]
    for _ in range(2):
        launcher.start("torch", replace(attempt("go on"), pack_key="basis"), LEASE_S)
        shown.append(launcher.packs("torch"))
    assert shown == [set(), {"basis"}, set()]


def test_an_attempt_without_a_pack_shares_with_none(launcher: Launcher, going_on: Attempt) -> None:
    assert launcher.packs("torch") == set()


@pytest.mark.parametrize("pack_key", ["another basis", None])
def test_a_pack_takes_no_attempt_of_another(
    launcher: Launcher, attempt: Callable[[str], Attempt], pack_key: str | None
) -> None:
    launcher.start("torch", replace(attempt("go on"), pack_key="basis"), LEASE_S)
    with pytest.raises(WorkerLostError):
        launcher.start("torch", replace(attempt("go on"), pack_key=pack_key), LEASE_S)


def test_a_full_pack_takes_no_more(
    launcher: Launcher, pair: tuple[Attempt, Attempt], attempt: Callable[[str], Attempt]
) -> None:
    with pytest.raises(WorkerLostError):
        launcher.start("torch", replace(attempt("go on"), pack_key="basis"), LEASE_S)


def test_one_attempt_of_a_pack_stops_and_leaves_its_place(
    launcher: Launcher, pair: tuple[Attempt, Attempt], ended: Ended
) -> None:
    first, second = pair
    launcher.request_stop(first.key)
    stopped = ended(first.key)
    launcher.forget(first.key)
    assert (stopped.state, launcher.poll(second.key, 0, LEASE_S).state) == ("stopped", "running")
    assert (launcher.packs("torch"), list(launcher.running())) == ({"basis"}, [second.key])


def test_an_attempt_whose_lease_alone_runs_out_is_stopped_and_its_pack_goes_on(
    launcher: Launcher, pair: tuple[Attempt, Attempt], until: Until
) -> None:
    first, second = pair
    until(lambda: launcher.poll(first.key, 0, 0.001).state == "stopped", timeout_s=30)
    assert launcher.poll(second.key, 0, LEASE_S).state == "running"


def test_the_worker_of_a_pack_ends_with_its_last_lease(
    launcher: Launcher, pair: tuple[Attempt, Attempt], until: Until
) -> None:
    def lost() -> bool:
        try:
            for made in pair:
                launcher.poll(made.key, 0, 0.001)
        except WorkerLostError:
            return True
        return False

    until(lost, timeout_s=30)


def test_a_kill_takes_the_pack_along(launcher: Launcher, pair: tuple[Attempt, Attempt]) -> None:
    launcher.kill(pair[0].key)
    for made in pair:
        with pytest.raises(WorkerLostError):
            launcher.poll(made.key, 0, LEASE_S)


@pytest.mark.ray
@pytest.mark.parametrize("shared", ["ray"], indirect=True)
def test_a_new_launcher_adopts_a_pack_with_its_key(
    launcher: Launcher, pair: tuple[Attempt, Attempt], ended: Ended
) -> None:
    first, second = pair
    launcher.request_stop(first.key)
    ended(first.key)
    launcher.forget(first.key)
    successor = RayLauncher(Flavour(), slots=1, jobs_per_worker=2, device="cpu", log_format="text")
    assert (list(successor.running()), successor.packs("torch")) == ([second.key], {"basis"})
