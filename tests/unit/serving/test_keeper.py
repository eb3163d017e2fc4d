"""Serving is watched, and started again for as long as the agent runs."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from zhub_workers.agent.__main__ import note_serving
from zhub_workers.agent.metrics import SERVING_UP
from zhub_workers.serving import keeper
from zhub_workers.serving.keeper import Serving, keep_serving

Until = Callable[..., Any]


class Scripted:
    """A serving that fails to start so many times, and answers while ``up``."""

    def __init__(self, failing_starts: int = 0) -> None:
        self.failing_starts = failing_starts
        self.deployed = self.removed = 0
        self.up = True
        self.broken = False

    def deploy(self) -> None:
        self.deployed += 1
        if self.deployed <= self.failing_starts:
            raise RuntimeError("no node has room")

    def answers(self) -> bool:
        if self.broken:
            raise RuntimeError("Ray Serve has given up")
        return self.up

    def remove(self) -> None:
        self.removed += 1

    def parts(self) -> Serving:
        return Serving(self.deploy, self.answers, self.remove)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PAUSE_S", "MAX_PAUSE_S", "LOOK_S", "STARTING_LOOK_S"):
        monkeypatch.setattr(keeper, name, 0.001)
    for name in ("READY_WITHIN_S", "LOST_AFTER_S"):
        monkeypatch.setattr(keeper, name, 0.05)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[Scripted], Path]]:
    stopping, threads = threading.Event(), []

    def start(serving: Scripted) -> Path:
        ready = tmp_path / "ready"
        options = {"note": partial(note_serving, ready), "stopping": stopping, "beat": lambda _within_s: None}
        threads.append(threading.Thread(target=keep_serving, args=(serving.parts(),), kwargs=options))
        threads[-1].start()
        return ready

    yield start
    stopping.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_serving_that_fails_to_start_is_started_again_from_scratch(
    keep: Callable[[Scripted], Path], until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    serving = Scripted(failing_starts=3)
    ready = keep(serving)
    until(ready.exists)
    assert (serving.deployed, serving.removed) == (4, 3)
    assert "serving failed to start (RuntimeError: no node has room); it is started again" in caplog.text


def test_serving_that_never_answers_is_started_again(keep: Callable[[Scripted], Path], until: Until) -> None:
    serving = Scripted()
    serving.up = False
    ready = keep(serving)
    until(lambda: serving.deployed > 2)
    assert not ready.exists()
    serving.up = True
    until(ready.exists)


def test_serving_that_stops_answering_is_not_ready_and_is_started_again(
    keep: Callable[[Scripted], Path], until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    serving = Scripted()
    ready = keep(serving)
    until(ready.exists)
    serving.up = False
    until(lambda: not ready.exists())
    assert [sample.value for family in SERVING_UP.collect() for sample in family.samples] == [0]
    until(lambda: serving.deployed > 1)
    assert serving.removed >= 1 and "serving has not answered for" in caplog.text
    serving.up = True
    until(ready.exists)


def test_serving_of_which_ray_serve_says_that_it_gave_up_is_started_again(
    keep: Callable[[Scripted], Path], until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    serving = Scripted()
    serving.broken = True
    ready = keep(serving)
    until(lambda: serving.deployed > 1)
    assert "Ray Serve has given up" in caplog.text
    serving.broken = False
    until(ready.exists)


def test_the_pauses_between_starts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "MAX_PAUSE_S", 0.004)
    pauses = []

    class Noting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            if len(pauses) == 5:
                self.set()
            return self.is_set()

    serving = Scripted(failing_starts=99).parts()
    keep_serving(serving, note=lambda _answers: None, stopping=Noting(), beat=lambda _within_s: None)
    assert pauses == [0.001, 0.002, 0.004, 0.004, 0.004]
