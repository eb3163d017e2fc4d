"""A launcher that runs attempts in detached Ray actors.

Each actor is a warm worker: it outlives its attempts, because importing torch and loading a base model take longer
than training a small expert. Ray restarts nothing (``max_restarts=0``): only the queue retries jobs. Actors are
detached, so training survives a restart of the agent, which finds them again by their names.
"""

import logging
import time
from collections.abc import Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorHandleNotFoundError, GetTimeoutError, RayError

from zhub.process.logs import LogFormat
from zhub.states import POOLS
from zhub_workers.agent.launcher import WorkerLostError, WorkerSilentError, choose_worker, holder_of, open_packs
from zhub_workers.agent.metrics import UNPLACED
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus, HeldAttempt
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.cluster.ray_cluster import NAMESPACE, View
from zhub_workers.cluster.ray_errors import meaning_of
from zhub_workers.worker.actors import LightActor, TorchActor

log = logging.getLogger("zhub.agent")

CALL_TIMEOUT_S = 10.0
SHORT_CALL_TIMEOUT_S = 1.0  # while another worker is silent: all workers of an unreachable node are silent
VIEW_TIMEOUT_S = 2.0
START_TIMEOUT_S = 300.0  # then a start is overdue; a new node takes minutes
ACTORS = {"light": LightActor, "torch": TorchActor}


@dataclass
class _Worker:
    """A worker that has answered."""

    pool: str
    actor: Any
    node: str
    holds: dict[AttemptKey, HeldAttempt]
    late: Any = None
    """The future of a call that was not answered in time."""


@dataclass
class _Start:
    """A worker that has not answered yet."""

    pool: str
    actor: Any
    answer: Any
    adopted: bool = False
    """An earlier agent started it, and it may hold attempts."""
    overdue: bool = False
    since: float = field(default_factory=time.monotonic)


class RayLauncher:
    """A pool of ``slots`` actors with torch and one actor without, in the Ray cluster that this process has joined."""

    def __init__(
        self, flavour: Flavour, *, slots: int, jobs_per_worker: int, device: str | None, log_format: LogFormat
    ) -> None:
        self._flavour = flavour
        self._sizes = {"light": 1, "torch": slots}
        self._jobs_per_worker = jobs_per_worker
        self._device = device
        self._log_format = log_format
        self._workers: dict[str, _Worker] = {}
        self._starting: dict[str, _Start] = {}
        self._draining: set[str] = set()
        self._died_on: dict[AttemptKey, str] = {}
        self._view_thread = ThreadPoolExecutor(1, thread_name_prefix="ray-head")
        self._pending_view: Future[View] | None = None
        self._adopt(ray_cluster.names())
        answers = [start.answer for start in self._starting.values()]
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=CALL_TIMEOUT_S)
        self.restore_pool_sizes()

    def restore_pool_sizes(self) -> None:
        """Start and end workers until each pool has its size; a new worker is free once it has answered."""
        with _head_may_be_away():
            self._restore_pool_sizes()

    def _restore_pool_sizes(self) -> None:
        for name, start in list(self._starting.items()):
            if ray.wait([start.answer], timeout=0)[0]:
                del self._starting[name]
                self._receive(name, start)
            elif time.monotonic() - start.since > START_TIMEOUT_S:
                self._handle_overdue_start(name, start)
        for pool in POOLS:
            self._shrink(pool)
            starting = sum(start.pool == pool for start in self._starting.values())
            for _ in range(self._size(pool) - len(self._staying(pool)) - starting):
                self._start_worker(pool)
        UNPLACED.set(sum(start.overdue for start in self._starting.values()))

    def clean_up(self) -> None:
        """See ``Launcher``. Also drop workers that have died, and end free workers on nodes that drain."""
        with _head_may_be_away():
            self._clean_up()

    def _clean_up(self) -> None:
        view = self._view()
        if view is None:
            return
        for name in self._workers.keys() - view.names:
            self._lose(name)
        self._adopt(view.names)
        self._draining = set(view.draining)
        for name, worker in list(self._workers.items()):
            if worker.node in self._draining and not worker.holds:
                self._end(name, "its node will go away")
        # An adopted worker that has not answered yet may hold the attempt of a shard or group.
        if not any(start.adopted for start in self._starting.values()):
            self._remove_leftovers(view)

    def slots(self) -> int:
        torch = [worker for worker in self._workers.values() if worker.pool == "torch"]
        up = sum(bool(worker.holds) or worker.node not in self._draining for worker in torch)
        starting = sum(start.pool == "torch" and not start.overdue for start in self._starting.values())
        return min(up + starting + self._slots_of_shards(), self._sizes["torch"])

    def free(self, pool: str) -> int:
        return sum(not worker.holds for worker in self._usable(pool).values())

    def packs(self, pool: str) -> set[str]:
        held = (worker.holds.values() for worker in self._usable(pool).values())
        return open_packs(held, jobs_per_worker=self._jobs_per_worker)

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        name = self.running().get(attempt.key) or self._choose(pool, attempt.pack_key)
        self._workers[name].holds[attempt.key] = HeldAttempt(attempt.key, attempt.pack_key, attempt.workers)
        self._shrink(pool)
        try:
            self._call(name, "start", attempt, lease_s)
        except WorkerLostError:
            if name in self._workers:
                del self._workers[name].holds[attempt.key]
            raise
        return name

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        name = holder_of(key, self.running())
        status: AttemptStatus | None = self._call(name, "poll", key, after_seq, lease_s)
        if status is None:
            del self._workers[name].holds[key]
            raise WorkerLostError(f"no worker holds attempt {key}")
        return status

    def request_stop(self, key: AttemptKey) -> None:
        self._call(holder_of(key, self.running()), "request_stop", key)

    def kill(self, key: AttemptKey) -> None:
        name = self.running().get(key)
        if name is not None:
            self._end(name, f"with attempt {key}")

    def forget(self, key: AttemptKey) -> None:
        name = holder_of(key, self.running())
        if self._call(name, "forget", key):
            del self._workers[name].holds[key]

    def running(self) -> dict[AttemptKey, str]:
        return {key: name for name, worker in self._workers.items() for key in worker.holds}

    def leaving(self) -> set[AttemptKey]:
        return {key for worker in self._workers.values() if worker.node in self._draining for key in worker.holds}

    def died_on(self, key: AttemptKey) -> str | None:
        return self._died_on.pop(key, None)

    def nodes(self) -> Set[str]:
        view = self._view()
        return set() if view is None else view.nodes - view.draining

    def _start_worker(self, pool: str) -> None:
        name = ray_cluster.worker_name(pool, self._flavour.cluster)
        flavour = self._flavour if pool == "torch" else Flavour()
        actor: Any = (
            ray.remote(ACTORS[pool])
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=4,  # so that the worker answers a poll during another call
                # Ray would start each actor that requests no resources on the head node.
                scheduling_strategy="SPREAD",
                label_selector=dict(flavour.labels) or None,
                **flavour.options,
            )
            .remote(self._device, self._log_format, self._flavour)
        )
        self._starting[name] = _Start(pool, actor, actor.__ray_call__.remote(_report_identity))
        log.info("worker %s: starting", name, extra={"action": "worker_starting", "worker": name})

    def _receive(self, name: str, start: _Start) -> None:
        try:
            node, held = ray.get(start.answer)
        except RayError as exc:
            # One that runs after all is adopted when Ray's head is asked the next time.
            extra = {"action": "worker_start_failed", "worker": name}
            log.error("worker %s did not start: %s", name, exc, extra=extra)
            return
        self._workers[name] = _Worker(start.pool, start.actor, node, {attempt.key: attempt for attempt in held})
        if start.adopted:
            attempts = ", ".join(str(attempt.key) for attempt in held) or "no attempt"
            about: dict[str, object] = {"action": "worker_adopted", "worker": name, "attempts": len(held)}
            log.info("worker %s: adopted, with %s", name, attempts, extra=about)
        else:
            log.info("worker %s: ready", name, extra={"action": "worker_ready", "worker": name})

    def _handle_overdue_start(self, name: str, start: _Start) -> None:
        """Replace an overdue worker for which Ray has started a process; else log the resources that it requests.

        A worker without a process goes on waiting: its request makes Ray's autoscaler add a node.
        """
        extra = {"action": "worker_start_failed", "worker": name}
        if ray_cluster.has_process(start.actor):
            del self._starting[name]
            ray.kill(start.actor, no_restart=True)
            log.error("worker %s did not answer within %.0f s; replaced", name, START_TIMEOUT_S, extra=extra)
            return
        start.overdue, start.since = True, time.monotonic()
        message = (
            "no node has had room for worker %s for %.0f s. It requests %s. Add such a node, lower ZHUB_SLOTS, or "
        )
        message += "change ZHUB_WORKER_…: until then the worker is not counted. Nodes: %s"
        requested = self._flavour if start.pool == "torch" else "nothing"
        log.error(message, name, START_TIMEOUT_S, requested, ray_cluster.nodes(), extra=extra)

    def _view(self) -> View | None:
        """What Ray's head reports; None while it does not answer, because attempts must still be polled then."""
        self._pending_view = self._pending_view or self._view_thread.submit(ray_cluster.list_workers_and_groups)
        try:
            return self._pending_view.result(VIEW_TIMEOUT_S)
        except Exception as exc:
            log.warning("Ray's head does not answer: %r", exc, extra={"action": "ray_head_silent"})
            return None
        finally:
            if self._pending_view.done():
                self._pending_view = None

    def _adopt(self, names: Set[str]) -> None:
        """Ask an earlier agent's workers which attempts they hold."""
        for name in names:
            pool = ray_cluster.pool_of(name, self._flavour.cluster)
            if pool is None or name in self._workers or name in self._starting:
                continue
            try:
                actor: Any = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                continue
            self._starting[name] = _Start(pool, actor, actor.__ray_call__.remote(_report_identity), adopted=True)

    def _remove_leftovers(self, view: View) -> None:
        """Remove shards and placement groups of attempts that no worker holds, if Ray did not with the worker."""
        running, cluster = self.running(), self._flavour.cluster
        keys = {name: ray_cluster.attempt_of_shard(name, cluster) for name in view.names}
        shards = [name for name, key in keys.items() if key is not None and key not in running]
        of_groups = ray_cluster.attempts_of_groups(view.groups, cluster)
        groups = [name for name, key in of_groups.items() if key not in running]
        ray_cluster.kill_all(shards)
        ray_cluster.remove_groups(groups)
        for name in [*shards, *groups]:
            log.warning("%s: left over, removed", name, extra={"action": "leftover_removed", "worker": name})

    def _size(self, pool: str) -> int:
        return self._sizes[pool] - (self._slots_of_shards() if pool == "torch" else 0)

    def _slots_of_shards(self) -> int:
        """How many slots the shards of attempts occupy; none if shards request no resources."""
        held = [attempt for worker in self._workers.values() for attempt in worker.holds.values()]
        return sum(attempt.workers - 1 for attempt in held) if self._flavour.bundle else 0

    def _staying(self, pool: str) -> list[str]:
        """The names of the pool's workers on nodes that do not drain."""
        return [
            name for name, worker in self._workers.items() if worker.pool == pool and worker.node not in self._draining
        ]

    def _shrink(self, pool: str) -> None:
        """End workers of a pool that exceeds its size: first those that are starting, then free ones."""
        starts = [name for name, start in self._starting.items() if start.pool == pool and not start.adopted]
        staying = self._staying(pool)
        surplus = len(starts) + len(staying) - self._size(pool)
        for name in [*starts, *(name for name in staying if not self._workers[name].holds)][: max(0, surplus)]:
            self._end(name, "the pool has more than its size")

    def _usable(self, pool: str) -> dict[str, _Worker]:
        return {
            name: worker
            for name, worker in self._workers.items()
            if worker.pool == pool and worker.node not in self._draining and worker.late is None
        }

    def _choose(self, pool: str, pack_key: str | None) -> str:
        held = {name: worker.holds.values() for name, worker in self._usable(pool).items()}
        return choose_worker(pool, held, pack_key, jobs_per_worker=self._jobs_per_worker)

    def _call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a worker. A silent worker is called again only after it has answered the earlier call."""
        worker = self._workers[name]
        if worker.late is not None:
            if not ray.wait([worker.late], timeout=0)[0]:
                raise WorkerSilentError(f"worker {name} still does not answer")
            worker.late = None
        silent = any(other.late is not None for other in self._workers.values())
        timeout_s = SHORT_CALL_TIMEOUT_S if silent else CALL_TIMEOUT_S
        answer = None
        try:
            answer = getattr(worker.actor, method).remote(*arguments)
            return ray.get(answer, timeout=timeout_s)
        except GetTimeoutError as exc:
            worker.late = answer
            raise WorkerSilentError(f"worker {name} did not answer within {timeout_s:.0f} s") from exc
        except RayError as exc:
            raise self._failed_call(name, method, exc) from exc

    def _failed_call(self, name: str, method: str, error: RayError) -> WorkerLostError | WorkerSilentError:
        """What a failed call of a worker means. One that is lost is forgotten, with what it held."""
        kind = type(error).__name__
        match meaning_of(error):
            case "silent":
                return WorkerSilentError(f"worker {name} cannot be reached ({kind})")
            case "lost":
                self._lose(name)
                return WorkerLostError(f"worker {name} died ({kind})")
            case "refused":
                # The worker is alive: it holds another agent's attempt, say, which this agent has not seen yet.
                extra = {"action": "worker_refused", "worker": name}
                log.error("worker %s refused to %s: %s", name, method, getattr(error, "cause", error), extra=extra)
                return WorkerLostError(f"worker {name} refused to {method}")

    def _end(self, name: str, why: str) -> None:
        log.info("worker %s: ended, %s", name, why, extra={"action": "worker_killed", "worker": name})
        worker = self._workers.pop(name, None) or self._starting.pop(name)
        with _head_may_be_away(), suppress(ActorHandleNotFoundError):
            ray.kill(worker.actor, no_restart=True)

    def _lose(self, name: str) -> None:
        log.warning("worker %s: died", name, extra={"action": "worker_died", "worker": name})
        worker = self._workers.pop(name)
        self._died_on |= dict.fromkeys(worker.holds, worker.node)


@contextmanager
def _head_may_be_away() -> Iterator[None]:
    """End the block where Ray's head fails: the next round asks again, and attempts are polled in this one, too."""
    try:
        yield
    except RayError as exc:
        log.warning("Ray's head does not answer: %r", exc, extra={"action": "ray_head_silent"})


def _report_identity(worker: LightActor) -> tuple[str, list[HeldAttempt]]:
    """The worker's node and the attempts that it holds. Runs in the worker, once it is up."""
    return ray.get_runtime_context().get_node_id(), worker.held()
