"""The shards of one job as Ray actors, each with the same resources as the worker that runs the job.

Their slots are reserved together, in a placement group, before the job begins; where a worker reserves nothing, neither
do they. They and their group belong to the worker: Ray ends them when it ends, however that is. A shard that is not up
yet, that died, or that makes no progress gets no rows until it, or its replacement, is up.
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
from ray.exceptions import GetTimeoutError, RayError
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from zhub.errors import UnavailableError
from zhub.specs import TrainSpec
from zhub.storage.object_store import open_store
from zhub_workers.attempts.attempt import AttemptKey
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.compute.requests import Request
from zhub_workers.compute.sharded import Ask, Shard, ShardLostError
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.model_cache import ModelCache

log = logging.getLogger("zhub.worker")

LOOK_S = 1.0
GROUP_TIMEOUT_S = 120.0  # until a job whose shards have no room gives its worker back
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

    def ask(self, request: Request[Any]) -> Any:
        try:
            return self._shard.ask(request)
        except Exception as exc:
            return Failed(exc)

    def pulse(self) -> int:
        return self._shard.pulse()


class RayShards:
    """``count`` shards of an attempt, for as long as the context lasts. See ``Shards``.

    Entering waits for their slots, calls ``check`` meanwhile, which may raise, and raises UnavailableError where there
    is no room for all of them.
    """

    def __init__(
        self,
        count: int,
        key: AttemptKey,
        spec: TrainSpec,
        store_url: str,
        cache_dir: Path,
        *,
        device: str,
        flavour: Flavour,
        check: Callable[[], None],
        on_change: Callable[[str], None],
    ) -> None:
        self._count = count
        self._key = key
        self._made_of = (spec, store_url, cache_dir, device)
        self._flavour = flavour
        self._check = check
        self._group: PlacementGroup | None = None
        self._on_change = on_change
        self._actors: dict[int, Any] = {}  # by slot, those that are up
        self._starting: dict[int, tuple[Any, Any]] = {}  # with the answer that says that they are
        self._failures = [0] * count
        self._lock = threading.Lock()
        self._beats = 0
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="shards")

    def __enter__(self) -> Self:
        if self._flavour.bundle:
            self._group = self._reserve()
        with self._lock:
            self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for actor in [*self._actors.values(), *(actor for actor, _ in self._starting.values())]:
                ray.kill(actor, no_restart=True)
            self._actors, self._starting = {}, {}
        if self._group is not None:
            remove_placement_group(self._group)
        self._threads.shutdown(wait=False)

    def ready(self) -> Sequence[Ask]:
        with self._lock:
            for slot, (actor, answer) in list(self._starting.items()):
                if ray.wait([answer], timeout=0)[0]:
                    del self._starting[slot]
                    self._settle(slot, actor, answer)
            self._fill()
            return [self._ask(slot, self._actors[slot]) for slot in sorted(self._actors)]

    def pulse(self) -> int:
        return self._beats

    def _reserve(self) -> PlacementGroup:
        # Not detached: it ends with the worker that asks for it, which is, and which outlives the agent.
        group: PlacementGroup = placement_group(
            [self._flavour.bundle] * self._count,
            strategy="PACK",
            name=ray_cluster.group_name(self._flavour.cluster, self._key),
            bundle_label_selector=[dict(self._flavour.labels)] * self._count if self._flavour.labels else None,
        )
        give_up = time.monotonic() + GROUP_TIMEOUT_S
        try:
            while not group.wait(LOOK_S):
                self._check()
                if time.monotonic() > give_up:
                    raise UnavailableError(
                        f"There was no room for {self._count} more processes within {GROUP_TIMEOUT_S:.0f} s. Each asks "
                        f"for {self._flavour}."
                    )
        except BaseException:
            remove_placement_group(group)
            raise
        return group

    def _fill(self) -> None:
        for slot in range(self._count):
            absent = slot not in self._actors and slot not in self._starting
            if absent and self._failures[slot] < MAX_FAILURES:
                actor: Any = (
                    ray.remote(ShardActor)
                    .options(
                        name=ray_cluster.shard_name(self._flavour.cluster, self._key),
                        namespace=ray_cluster.NAMESPACE,
                        max_restarts=0,
                        max_task_retries=0,
                        max_concurrency=2,  # a pulse while it computes
                        scheduling_strategy=self._strategy(slot),
                        **self._flavour.options,
                    )
                    .remote(*self._made_of)
                )
                self._starting[slot] = (actor, actor.pulse.remote())

    def _strategy(self, slot: int) -> str | PlacementGroupSchedulingStrategy:
        return "SPREAD" if self._group is None else PlacementGroupSchedulingStrategy(self._group, slot)

    def _settle(self, slot: int, actor: Any, answer: Any) -> None:
        try:
            ray.get(answer)
        except RayError as exc:
            extra = {"action": "shard_start_failed", "shard": slot + 1}
            log.error("shard %d did not start: %s", slot + 1, exc, extra=extra)
            self._fail(slot, "did not start")
            return
        self._actors[slot] = actor
        self._on_change(f"{len(self._actors) + 1} of {self._count + 1} processes share the rows.")

    def _ask(self, slot: int, actor: Any) -> Ask:
        def ask(request: Request[Any]) -> Future[Any]:
            return self._threads.submit(self._answer, slot, actor, request)

        return ask

    def _answer(self, slot: int, actor: Any, request: Request[Any]) -> Any:
        try:
            answer = actor.ask.remote(request)
            beats, moved_at = -1, time.monotonic()
            while not ray.wait([answer], timeout=LOOK_S)[0]:
                pulse: int = ray.get(actor.pulse.remote(), timeout=SILENT_S)
                if pulse != beats:
                    beats, moved_at = pulse, time.monotonic()
                    self._beats += 1
                elif time.monotonic() - moved_at > SILENT_S:
                    raise GetTimeoutError
            outcome = ray.get(answer)
        except RayError as exc:
            # Whatever it is: a shard holds nothing that another one, or this process, cannot compute again.
            self._lose(slot, actor)
            raise ShardLostError from exc
        self._failures[slot] = 0
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome

    def _lose(self, slot: int, actor: Any) -> None:
        with self._lock:
            if slot in self._actors and self._actors[slot] is actor:
                del self._actors[slot]
                ray.kill(actor, no_restart=True)
                self._fail(slot, "was lost, and the others compute its rows")

    def _fail(self, slot: int, what: str) -> None:
        self._failures[slot] += 1
        given_up = ": given up" if self._failures[slot] == MAX_FAILURES else ""
        self._on_change(f"Process {slot + 2} of {self._count + 1} {what}{given_up}.")
