"""Each of Ray's exceptions means what was decided for it, and one that a later Ray adds is noticed."""

import inspect
import uuid
from typing import Any

import pytest
from ray import exceptions  # noqa: TID251
from ray.exceptions import RayError, RayTaskError  # noqa: TID251

from zhub_workers.agent.launcher import WorkerLostError, WorkerSilentError
from zhub_workers.agent.ray_launcher import RayLauncher, _Worker
from zhub_workers.attempts.attempt import AttemptKey, HeldAttempt
from zhub_workers.cluster.ray_errors import MEANINGS, meaning_of

KEY = AttemptKey(uuid.UUID(int=1), 1)


def raised(kind: type[RayError]) -> RayError:
    """An error of this kind, however it is made."""
    members: dict[str, Any] = {"__init__": lambda _self: None, "__str__": lambda _self: kind.__name__}
    sample: RayError = type(kind.__name__, (kind,), members)()
    return sample


def test_every_exception_of_this_ray_was_decided_on_purpose() -> None:
    known = {
        kind
        for kind in vars(exceptions).values()
        if inspect.isclass(kind) and issubclass(kind, RayError) and kind.__module__ == exceptions.__name__
    }
    assert set(MEANINGS) == known


def test_a_worker_that_ray_killed_for_its_memory_is_lost() -> None:
    assert meaning_of(raised(exceptions.OutOfMemoryError)) == "lost"


def test_an_exception_that_nobody_knows_is_silence() -> None:
    assert meaning_of(raised(type("Later", (RayError,), {}))) == "silent"


@pytest.mark.parametrize("kind", [exceptions.ActorDiedError, exceptions.GetTimeoutError, ValueError])
def test_what_a_method_raised_is_a_refusal_whatever_it_is(kind: type[Exception]) -> None:
    cause = raised(kind) if issubclass(kind, RayError) else kind("x")
    error: Any = RayTaskError("poll", "a traceback", cause).as_instanceof_cause()  # type: ignore[no-untyped-call]
    assert (isinstance(error, kind), meaning_of(error)) == (True, "refused")


class Failing:
    """An actor whose every call fails with an error of Ray's."""

    def __init__(self, error: RayError) -> None:
        self._error = error

    def __getattr__(self, _method: str) -> "Failing":
        return self

    def remote(self, *_arguments: object) -> None:
        raise self._error


def launcher_of(actor: Failing) -> RayLauncher:
    """A launcher that has one worker, which holds one attempt, and no Ray."""
    launcher = RayLauncher.__new__(RayLauncher)
    launcher._workers = {"w": _Worker("torch", actor, "node", {KEY: HeldAttempt(KEY, None, 1)})}
    launcher._died_on = {}
    return launcher


@pytest.mark.parametrize("kind", MEANINGS, ids=lambda kind: kind.__name__)
def test_every_exception_ends_a_call_as_a_lost_or_a_silent_worker(kind: type[RayError]) -> None:
    launcher = launcher_of(Failing(raised(kind)))
    expected = WorkerSilentError if MEANINGS[kind] == "silent" else WorkerLostError
    with pytest.raises(expected):
        launcher.poll(KEY, 0, 60.0)
    lost = MEANINGS[kind] == "lost"
    assert (KEY in launcher.running(), launcher.died_on(KEY)) == (not lost, "node" if lost else None)
