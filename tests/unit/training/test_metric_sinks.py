"""Metrics on their way to other tools: all of them, in order, and never at the cost of the training."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zhub_workers.training import metric_sinks
from zhub_workers.training.metric_sinks import Run, TensorBoardSink, sending_metrics

RUN = Run("ftjob-1", "sums", {"base": "tiny", "n_steps": 3})


@dataclass
class Recorder:
    """A sink that keeps what it gets, or fails at a step."""

    fails_at: int | None = None
    got: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server is away")
        self.got.append((step, dict(values)))

    def close(self, *, failed: bool) -> None:
        self.closed.append(failed)


Install = Callable[[str, Any], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Have a kind of sinks made by this function of target and run."""
    return lambda kind, make: monkeypatch.setitem(metric_sinks.SINKS, kind, make)


@dataclass
class Told:
    """What the job's events and its log were told."""

    events: list[Any] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def event(self, level: str, message: str, data: dict[str, Any] | None) -> None:
        self.events.append((level, message, data))

    def note(self, _level: str, message: str) -> None:
        self.lines.append(message)


def metrics(step: int, **values: Any) -> dict[str, Any]:
    return {"type": "metrics", "step": step, **values}


def test_every_metric_goes_to_every_sink_in_order_and_the_events_stay_as_they_were(install: Install) -> None:
    first, second, told = Recorder(), Recorder(), Told()
    made: list[tuple[str, Run]] = []

    def maker(sink: Recorder) -> Callable[[str, Run], Recorder]:
        def make(target: str, run: Run) -> Recorder:
            made.append((target, run))
            return sink

        return make

    install("mlflow", maker(first))
    install("wandb", maker(second))
    with sending_metrics(["mlflow:https://host:5000", "wandb"], RUN, told.event, told.note) as tell:
        tell("info", "Rows: 9.", {"type": "rows", "train": 9})
        for step in range(3):
            tell("info", f"Step {step}.", metrics(step, loss=step / 2, kept=True, why="so"))
    assert first.got == second.got == [(0, {"loss": 0.0}), (1, {"loss": 0.5}), (2, {"loss": 1.0})]
    assert sorted(made, key=str) == [("", RUN), ("https://host:5000", RUN)]
    assert (first.closed, told.lines, len(told.events)) == ([False], [], 4)


def test_a_sink_that_fails_is_told_of_once_and_the_training_and_other_sinks_go_on(install: Install) -> None:
    broken, whole, told = Recorder(fails_at=1), Recorder(), Told()
    install("mlflow", lambda *_: broken)
    install("wandb", lambda *_: whole)
    with sending_metrics(["mlflow:x", "wandb:y"], RUN, told.event, told.note) as tell:
        for step in range(4):
            tell("info", "", metrics(step, loss=1.0))
    assert ([step for step, _ in broken.got], [step for step, _ in whole.got]) == ([0], [0, 1, 2, 3])
    assert told.lines == ["No more metrics to mlflow: ConnectionError: the server is away"]


def test_a_library_that_is_missing_is_said_with_how_to_install_it(install: Install) -> None:
    def missing(_target: str, _run: Run) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'")

    install("wandb", missing)
    told = Told()
    with sending_metrics(["wandb:x"], RUN, told.event, told.note) as tell:
        tell("info", "", metrics(1, loss=1.0))
    assert told.lines == ["No metrics to wandb: No module named 'wandb'. Install it with pip install 'zhub[wandb]'."]


def test_a_training_that_fails_closes_its_sinks_as_failed(install: Install) -> None:
    sink, told = Recorder(), Told()
    install("mlflow", lambda *_: sink)
    with pytest.raises(ZeroDivisionError), sending_metrics(["mlflow"], RUN, told.event, told.note):
        raise ZeroDivisionError
    assert sink.closed == [True]


def test_a_sink_that_hangs_holds_no_step_up_and_the_end_only_for_a_bounded_time(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    monkeypatch.setattr(metric_sinks, "CLOSE_S", 0.05)
    monkeypatch.setattr(metric_sinks, "MAX_WAITING", 3)

    def hanging(_target: str, _run: Run) -> Any:
        free.wait(20)
        raise TimeoutError

    install("wandb", hanging)
    told = Told()
    with sending_metrics(["wandb"], RUN, told.event, told.note) as tell:
        for step in range(10):
            tell("info", "", metrics(step, loss=1.0))
    assert len(told.events) == 10
    assert told.lines == ["Metrics to wandb: not all were taken within 0 s."]
    free.set()


def test_an_attempt_that_goes_on_from_a_checkpoint_does_not_send_the_base_again(install: Install) -> None:
    sink, told = Recorder(), Told()
    install("mlflow", lambda *_: sink)
    resumed = Run("ftjob-1", "sums", {}, resumed_after=5)
    with sending_metrics(["mlflow"], resumed, told.event, told.note) as tell:
        for step in (0, 6):
            tell("info", "", metrics(step, loss=1.0))
    assert [step for step, _ in sink.got] == [6] and len(told.events) == 2


def test_tensorboard_reads_what_two_attempts_of_a_job_have_written(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    for resumed_after, steps in ((0, range(5)), (2, range(3, 6))):
        sink = TensorBoardSink(str(tmp_path), Run("ftjob-1", "sums", RUN.settings, resumed_after))
        for step in steps:
            sink.log(step, {"loss": 10.0 * resumed_after + step})
        sink.close(failed=False)
    read = accumulator.EventAccumulator(str(tmp_path / "sums-ftjob-1"))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 23.0),
        (4, 24.0),
        (5, 25.0),
    ]
