"""Attempts in detached Ray actors.

An actor here is a warm worker: it outlives its attempts, because importing torch and loading a base model take longer
than training a small expert. Ray restarts nothing (``max_restarts=0``): the job's row is the only authority that
retries. Actors are detached, so training survives a restart of the agent, which finds them again by their names.
"""

import logging
import time
from collections.abc import Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from zhub.process.logs import LogFormat
from zhub.states import POOLS
from zhub_workers.agent.launcher import WorkerLostError, WorkerSilentError, choose_worker, holder_of, open_packs
from zhub_workers.agent.metrics import UNPLACED
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus, HeldAttempt
from zhub_workers.cluster import ray_cluster
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.cluster.ray_cluster import NAMESPACE, View
from zhub_workers.worker.actors import LightActor, TorchActor

log = logging.getLogger("zhub.agent")

CALL_TIMEOUT_S = 10.0
IMPATIENT_S = 1.0  # for a call while another worker is silent: a node that is cut off takes all of its workers along
LOOK_TIMEOUT_S = 2.0
START_TIMEOUT_S = 300.0  # until a worker that has not started is a failure; a new node takes minutes
ACTORS = {"light": LightActor, "torch": TorchActor}


@dataclass
class _Worker:
    """A worker that has answered."""

    pool: str
    actor: Any
    node: str
    holds: dict[AttemptKey, HeldAttempt]
    late: Any = None
    """The answer to a call that did not come in time."""


@dataclass
class _Start:
    """A worker that has not answered yet."""

    pool: str
    actor: Any
    answer: Any
    adopted: bool = False
    """It was started by an earlier agent, and may hold attempts."""
    overdue: bool = False
    since: float = field(default_factory=time.monotonic)


class RayLauncher:
    """A pool of ``slots`` actors with torch and one without, in the cluster that this process has joined."""

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
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="ray-head")
        self._looking: Future[View] | None = None
        self._adopt(ray_cluster.names())
        answers = [start.answer for start in self._starting.values()]
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=CALL_TIMEOUT_S)
        self.fill_pools()

    def fill_pools(self) -> None:
        """Start and end workers until every pool has its size; new ones become free once they have answered."""
        for name, start in list(self._starting.items()):
            if ray.wait([start.answer], timeout=0)[0]:
                del self._starting[name]
                self._receive(name, start)
            elif time.monotonic() - start.since > START_TIMEOUT_S:
                self._complain(name, start)
        for pool in POOLS:
            self._shrink(pool)
            staying = [one for one in self._workers.values() if one.pool == pool and one.node not in self._draining]
            have = len(staying) + sum(start.pool == pool for start in self._starting.values())
            for _ in range(self._size(pool) - have):
                self._begin(pool)
        UNPLACED.set(sum(start.overdue for start in self._starting.values()))

    def tidy(self) -> None:
        """See ``Launcher``: take over strangers, drop the dead, end leftovers, and leave nodes that drain."""
        view = self._look()
        if view is None:
            return
        for name in self._workers.keys() - view.names:
            self._lose(name)
        self._adopt(view.names)
        self._draining = set(view.draining)
        for name, worker in list(self._workers.items()):
            if worker.node in self._draining and not worker.holds:
                self._end(name, "its node will go away")
        # What a worker holds that has not answered yet is not known.
        if not any(start.adopted for start in self._starting.values()):
            self._remove_leftovers(view)

    def slots(self) -> int:
        torch = [one for one in self._workers.values() if one.pool == "torch"]
        there = sum(bool(one.holds) or one.node not in self._draining for one in torch)
        soon = sum(start.pool == "torch" and not start.overdue for start in self._starting.values())
        return min(there + soon + self._places_of_shards(), self._sizes["torch"])

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
        return {key for one in self._workers.values() if one.node in self._draining for key in one.holds}

    def died_on(self, key: AttemptKey) -> str | None:
        return self._died_on.pop(key, None)

    def nodes(self) -> Set[str]:
        view = self._look()
        return set() if view is None else view.nodes - view.draining

    def _begin(self, pool: str) -> None:
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
                max_concurrency=4,  # a poll must be answered while another call is under way
                # An actor that asks for nothing would always land on the head.
                scheduling_strategy="SPREAD",
                label_selector=dict(flavour.labels) or None,
                **flavour.options,
            )
            .remote(self._device, self._log_format, self._flavour)
        )
        self._starting[name] = _Start(pool, actor, actor.__ray_call__.remote(_introduce))
        log.info("worker %s: starting", name, extra={"action": "worker_starting", "worker": name})

    def _receive(self, name: str, start: _Start) -> None:
        try:
            node, held = ray.get(start.answer)
        except RayActorError as exc:
            extra = {"action": "worker_start_failed", "worker": name}
            log.error("worker %s did not start: %s", name, exc, extra=extra)
            return
        self._workers[name] = _Worker(start.pool, start.actor, node, {one.key: one for one in held})
        if start.adopted:
            attempts = ", ".join(str(one.key) for one in held) or "no attempt"
            about: dict[str, object] = {"action": "worker_adopted", "worker": name, "attempts": len(held)}
            log.info("worker %s: adopted, with %s", name, attempts, extra=about)
        else:
            log.info("worker %s: ready", name, extra={"action": "worker_ready", "worker": name})

    def _complain(self, name: str, start: _Start) -> None:
        """A start is overdue: replace a worker that has a place, and say of another what it asks for.

        That one goes on waiting: it is the demand that makes Ray's autoscaler add a node.
        """
        extra = {"action": "worker_start_failed", "worker": name}
        if ray_cluster.has_process(start.actor):
            del self._starting[name]
            ray.kill(start.actor, no_restart=True)
            log.error("worker %s did not answer within %.0f s; replaced", name, START_TIMEOUT_S, extra=extra)
            return
        start.overdue, start.since = True, time.monotonic()
        message = "worker %s has no place since %.0f s. It asks for %s. Add such a node, lower ZHUB_SLOTS, or change "
        message += "ZHUB_WORKER_…: until then it does not count. Nodes: %s"
        asked = self._flavour if start.pool == "torch" else "nothing"
        log.error(message, name, START_TIMEOUT_S, asked, ray_cluster.nodes(), extra=extra)

    def _look(self) -> View | None:
        """Ask Ray's head; None while it does not answer, which must not keep attempts from being polled."""
        self._looking = self._looking or self._looks.submit(ray_cluster.look)
        try:
            return self._looking.result(LOOK_TIMEOUT_S)
        except Exception as exc:
            log.warning("Ray's head does not answer: %r", exc, extra={"action": "ray_head_silent"})
            return None
        finally:
            if self._looking.done():
                self._looking = None

    def _adopt(self, names: Set[str]) -> None:
        """Ask the workers that an earlier agent left what they hold."""
        for name in names:
            pool = ray_cluster.pool_of(name, self._flavour.cluster)
            if pool is None or name in self._workers or name in self._starting:
                continue
            try:
                actor: Any = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                continue
            self._starting[name] = _Start(pool, actor, actor.__ray_call__.remote(_introduce), adopted=True)

    def _remove_leftovers(self, view: View) -> None:
        """End shards and groups of attempts that no worker holds: Ray ends them with their worker, or should."""
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
        return self._sizes[pool] - (self._places_of_shards() if pool == "torch" else 0)

    def _places_of_shards(self) -> int:
        """Workers' places that are in the groups of attempts; shards that ask for nothing take nobody's."""
        held = [one for worker in self._workers.values() for one in worker.holds.values()]
        return sum(one.workers - 1 for one in held) if self._flavour.bundle else 0

    def _shrink(self, pool: str) -> None:
        """End starts, and then free workers, of which the pool has more than its size."""
        starts = [name for name, start in self._starting.items() if start.pool == pool and not start.adopted]
        staying = [name for name, one in self._workers.items() if one.pool == pool and one.node not in self._draining]
        surplus = len(starts) + len(staying) - self._size(pool)
        for name in [*starts, *(name for name in staying if not self._workers[name].holds)][: max(0, surplus)]:
            self._end(name, "one too many")

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
        """Call a worker. One that is silent is called again only once it has answered the call before."""
        worker = self._workers[name]
        if worker.late is not None:
            if not ray.wait([worker.late], timeout=0)[0]:
                raise WorkerSilentError(f"worker {name} still does not answer")
            worker.late = None
        silent = any(other.late is not None for other in self._workers.values())
        patience_s = IMPATIENT_S if silent else CALL_TIMEOUT_S
        answer = getattr(worker.actor, method).remote(*arguments)
        try:
            return ray.get(answer, timeout=patience_s)
        except GetTimeoutError as exc:
            worker.late = answer
            raise WorkerSilentError(f"worker {name} did not answer within {patience_s:.0f} s") from exc
        except ActorUnavailableError as exc:
            raise WorkerSilentError(f"worker {name} cannot be reached") from exc
        except RayActorError as exc:
            self._lose(name)
            raise WorkerLostError(f"worker {name} died") from exc
        except RayTaskError as exc:
            # It lives and will not: it holds what another agent of this cluster gave it, which we have not seen yet.
            extra = {"action": "worker_refused", "worker": name}
            log.error("worker %s refused to %s: %s", name, method, exc.cause, extra=extra)
            raise WorkerLostError(f"worker {name} refused to {method}") from exc

    def _end(self, name: str, why: str) -> None:
        log.info("worker %s: ended, %s", name, why, extra={"action": "worker_killed", "worker": name})
        found = self._workers.pop(name, None) or self._starting.pop(name)
        ray.kill(found.actor, no_restart=True)

    def _lose(self, name: str) -> None:
        log.warning("worker %s: died", name, extra={"action": "worker_died", "worker": name})
        worker = self._workers.pop(name)
        self._died_on |= dict.fromkeys(worker.holds, worker.node)


def _introduce(worker: LightActor) -> tuple[str, list[HeldAttempt]]:
    """Said by a worker when it is up: its node, and what it holds."""
    return ray.get_runtime_context().get_node_id(), worker.held()
