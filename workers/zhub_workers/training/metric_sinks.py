"""Where else the metrics of a training go while it runs: TensorBoard, MLflow, Weights & Biases.

Each is reached by its own library, which comes with the extra of its name. A sink has a thread of its own: training
never waits for it, and when it fails, the job's log says so once and the job goes on without it.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from zhub_workers.training.job import OnEvent

MAX_WAITING = 10_000  # points; what comes while so many wait is left out
CLOSE_S = 10.0

Note = Callable[[str, str], None]
"""``(level, message)``: a line in the job's log."""


@dataclass(frozen=True)
class Run:
    """The training that the metrics are of, one and the same for all attempts of its job."""

    job_id: str
    name: str
    settings: Mapping[str, Any]
    """Base, method and hyper-parameters."""
    resumed_after: int = 0
    """The step of the checkpoint that this attempt goes on from."""


class MetricSink(Protocol):
    """Takes the metrics of one run. Only its own thread uses it, and any exception ends it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Store the values of a step; steps grow."""

    def close(self, *, failed: bool) -> None:
        """Store what still waits."""


class TensorBoardSink:
    """Event files in a directory of the run's own, ``<target>/<name>-<job>``."""

    def __init__(self, target: str, run: Run) -> None:
        # Here, because it needs the extra `tensorboard`.
        from torch.utils.tensorboard import SummaryWriter

        directory = f"{target.rstrip('/')}/{run.name}-{run.job_id}"
        # What an earlier attempt wrote of the steps that come now is dropped.
        first = run.resumed_after + 1 if run.resumed_after else 0
        self._writer: Any = SummaryWriter(directory, purge_step=first)
        self._writer.add_text("settings", "\n".join(f"- {name}: {value}" for name, value in run.settings.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class MlflowSink:
    """A run of the experiment ``zhub`` of a tracking server, found again by its tag ``zhub.job``."""

    EXPERIMENT = "zhub"

    def __init__(self, target: str, run: Run) -> None:
        # Here, because they come with the extra `mlflow`. The client, because the module has one run for a process.
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(target or None)
        experiment = self._client.get_experiment_by_name(self.EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self.EXPERIMENT)
        earlier = self._client.search_runs([experiment_id], f"tags.`zhub.job` = '{run.job_id}'", max_results=1)
        if earlier:
            self._run_id = earlier[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        tags = {"zhub.job": run.job_id}
        self._run_id = self._client.create_run(experiment_id, tags=tags, run_name=run.name).info.run_id
        self._client.log_batch(self._run_id, params=[Param(name, str(value)) for name, value in run.settings.items()])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id, metrics=[self._metric(name, value, now_ms, step) for name, value in values.items()]
        )

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


class WandbSink:
    """A run of the project ``target``, whose id is the job's."""

    def __init__(self, target: str, run: Run) -> None:
        # Here, because it comes with the extra `wandb`.
        import wandb

        self._run = wandb.init(
            project=target or "zhub",
            id=run.job_id,
            name=run.name,
            config=dict(run.settings),
            resume="allow",
            reinit="create_new",  # the jobs of a pack train in one process
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


SINKS: dict[str, Callable[[str, Run], MetricSink]] = {
    "tensorboard": TensorBoardSink,
    "mlflow": MlflowSink,
    "wandb": WandbSink,
}


@contextmanager
def sending_metrics(sinks: Sequence[str], run: Run, on_event: OnEvent, note: Note) -> Iterator[OnEvent]:
    """``on_event`` that also sends metrics to the ``sinks``, each ``<kind>:<target>``, while the context lasts."""
    with ExitStack() as stack:
        feeds = [stack.enter_context(_feed(sink, run, note)) for sink in sinks]

        def tell(level: str, message: str, data: dict[str, Any] | None) -> None:
            on_event(level, message, data)
            if data is None or data.get("type") != "metrics" or (data["step"] == 0 and run.resumed_after):
                return  # of the base, whose values an earlier attempt has sent
            values = {name: float(value) for name, value in data.items() if name != "step" and _is_number(value)}
            for feed in feeds:
                feed.put(data["step"], values)

        yield tell


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def _feed(sink: str, run: Run, note: Note) -> Iterator["_Feed"]:
    feed = _Feed(sink, run, note)
    try:
        yield feed
    except BaseException:
        feed.end(failed=True)
        raise
    feed.end(failed=False)


class _Feed:
    """The thread of one sink, and what waits for it."""

    def __init__(self, sink: str, run: Run, note: Note) -> None:
        self._kind, _, self._target = sink.partition(":")
        self._run = run
        self._note = note
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | bool] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._send, daemon=True, name=f"metrics-{self._kind}")
        self._thread.start()

    def put(self, step: int, values: Mapping[str, float]) -> None:
        if self._thread.is_alive() and not self._waiting.full():
            self._waiting.put_nowait((step, values))

    def end(self, *, failed: bool) -> None:
        """Have what waits stored; give up after ``CLOSE_S`` seconds."""
        if not self._waiting.full():
            self._waiting.put_nowait(failed)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._note("warn", f"Metrics to {self._kind}: not all were taken within {CLOSE_S:.0f} s.")

    def _send(self) -> None:
        try:
            sink = SINKS[self._kind](self._target, self._run)
            while not isinstance(point := self._waiting.get(), bool):
                sink.log(*point)
            sink.close(failed=point)
        except ImportError as exc:
            self._note("warn", f"No metrics to {self._kind}: {exc}. Install it with pip install 'zhub[{self._kind}]'.")
        except Exception as exc:
            self._note("warn", f"No more metrics to {self._kind}: {type(exc).__name__}: {exc}")
