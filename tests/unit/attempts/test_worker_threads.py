"""The threads of a worker: when one dies, the attempt, or the worker, ends."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zhub_workers.attempts import worker as worker_module
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey
from zhub_workers.attempts.worker import Worker

KEY = AttemptKey(uuid.UUID(int=1), 1)


def succeed(_attempt: Attempt, _context: AttemptContext) -> dict[str, Any]:
    return {}


def test_an_attempt_around_which_something_fails_has_failed_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    def shipping(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker_module, "shipping", shipping)
    worker = Worker(succeed, exit_process=lambda _code: None)
    worker.start(Attempt(KEY, uuid.UUID(int=2), {"kind": "train"}, tmp_path.as_uri(), tmp_path, None, None), 60.0)
    status = until(lambda: (found := worker.poll(KEY, 0, 60.0)) and found.state != "running" and found)
    assert (status.state, status.failure.code, status.failure.retryable) == ("failed", "internal_error", True)


def test_a_worker_whose_leases_nobody_watches_ends(until: Callable[..., Any]) -> None:
    class Blind(Worker):
        def _watch_leases(self) -> None:
            raise RuntimeError("a bug")

    codes: list[int] = []
    Blind(succeed, exit_process=codes.append)
    assert until(lambda: codes) == [1]
