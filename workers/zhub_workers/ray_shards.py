"""The shards of one job as Ray actors, each with a share of GPUs like that of the worker whose job it is.

They belong to the worker: Ray ends them when it ends, however that is. One that Ray has no room for yet, that died, or
that stands still is left out until it, or another in its place, is up.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError

from zhub.specs import TrainSpec
from zhub.store import open_store
from zhub_workers.adapters import make_adapter
from zhub_workers.model_cache import ModelCache
from zhub_workers.sharded import Ask, Shard, ShardLostError

log = logging.getLogger("zhub.worker")

LOOK_S = 1.0
SILENT_S = 120.0  # a shard that gets on with nothing for so long is lost
MAX_FAILURES = 3  # in a row, of one shard: to start, or to answer


@dataclass(frozen=True)
class Failed:
    """What a shard answers when it failed: as a value, because Ray remakes exceptions from their class alone."""

    error: Exception


class ShardActor:
    """A process with a base of its own, which answers for some rows of one job."""

    def __init__(self, spec: TrainSpec, store_url: str, cache_dir: Path, device: str) -> None:
        hyper = spec.hyperparameters
        models = ModelCache(torch.device(device), capacity=1)
        model = models.get(spec.base, spec.basis, open_store(store_url), cache_dir)
        self._shard = Shard(make_adapter(model, hyper), token_limit=hyper.micro_batch_tokens)

    def ask(self, method: str, arguments: dict[str, Any]) -> Any:
        try:
            return self._shard.ask(method, **arguments)
        except Exception as exc:
            return Failed(exc)

    def pulse(self) -> int:
        return self._shard.pulse()


class RayShards:
    """``count`` shards of a job, for as long as the context lasts. See ``Shards``."""

    def __init__(
        self,
        count: int,
        spec: TrainSpec,
        store_url: str,
        cache_dir: Path,
        *,
        device: str,
        gpus: float,
        on_change: Callable[[str], None],
    ) -> None:
        self._count = count
        self._made_of = (spec, store_url, cache_dir, device)
        self._gpus = gpus
        self._on_change = on_change
        self._actors: dict[int, Any] = {}  # by place, those that are up
        self._starting: dict[int, tuple[Any, Any]] = {}  # with the answer that says that they are
        self._failures = [0] * count
        self._lock = threading.Lock()
        self._beats = 0
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="shards")

    def __enter__(self) -> Self:
        with self._lock:
            self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for actor in [*self._actors.values(), *(actor for actor, _ in self._starting.values())]:
                ray.kill(actor, no_restart=True)
            self._actors, self._starting = {}, {}
        self._threads.shutdown(wait=False)

    def ready(self) -> Sequence[Ask]:
        with self._lock:
            for place, (actor, answer) in list(self._starting.items()):
                if ray.wait([answer], timeout=0)[0]:
                    del self._starting[place]
                    self._settle(place, actor, answer)
            self._fill()
            return [self._ask(place, self._actors[place]) for place in sorted(self._actors)]

    def pulse(self) -> int:
        return self._beats

    def _fill(self) -> None:
        for place in range(self._count):
            absent = place not in self._actors and place not in self._starting
            if absent and self._failures[place] < MAX_FAILURES:
                actor: Any = (
                    ray.remote(ShardActor)
                    .options(
                        max_restarts=0,
                        max_task_retries=0,
                        max_concurrency=2,  # a pulse while it computes
                        scheduling_strategy="SPREAD",
                        num_cpus=0,
                        num_gpus=self._gpus,
                    )
                    .remote(*self._made_of)
                )
                self._starting[place] = (actor, actor.pulse.remote())

    def _settle(self, place: int, actor: Any, answer: Any) -> None:
        try:
            ray.get(answer)
        except RayActorError as exc:
            extra = {"action": "shard_start_failed", "shard": place + 1}
            log.error("shard %d did not start: %s", place + 1, exc, extra=extra)
            self._fail(place, "did not start")
            return
        self._actors[place] = actor
        self._on_change(f"{len(self._actors) + 1} of {self._count + 1} processes share the rows.")

    def _ask(self, place: int, actor: Any) -> Ask:
        def ask(method: str, **arguments: Any) -> Future[Any]:
            return self._threads.submit(self._answer, place, actor, method, arguments)

        return ask

    def _answer(self, place: int, actor: Any, method: str, arguments: dict[str, Any]) -> Any:
        try:
            answer = actor.ask.remote(method, arguments)
            beats, moved_at = -1, time.monotonic()
            while not ray.wait([answer], timeout=LOOK_S)[0]:
                pulse: int = ray.get(actor.pulse.remote(), timeout=SILENT_S)
                if pulse != beats:
                    beats, moved_at = pulse, time.monotonic()
                    self._beats += 1
                elif time.monotonic() - moved_at > SILENT_S:
                    raise GetTimeoutError
            found = ray.get(answer)
        except (RayActorError, GetTimeoutError) as exc:
            self._lose(place, actor)
            raise ShardLostError from exc
        self._failures[place] = 0
        if isinstance(found, Failed):
            raise found.error
        return found

    def _lose(self, place: int, actor: Any) -> None:
        with self._lock:
            if place in self._actors and self._actors[place] is actor:
                del self._actors[place]
                ray.kill(actor, no_restart=True)
                self._fail(place, "was lost, and the others compute its rows")

    def _fail(self, place: int, what: str) -> None:
        self._failures[place] += 1
        given_up = ": given up" if self._failures[place] == MAX_FAILURES else ""
        self._on_change(f"Process {place + 2} of {self._count + 1} {what}{given_up}.")


def assigned_gpus() -> float:
    """The share of GPUs that Ray has given to the actor that this runs in."""
    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0)
