"""Attempts in detached Ray actors.

An actor here is a warm worker: it outlives its attempts, because importing torch and loading a base model take longer
than training a small expert. Ray restarts nothing (``max_restarts=0``): the job's row is the only authority that
retries. Actors are detached, so training survives a restart of the agent, which finds them again by their names.
"""

import logging
import uuid
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from zhub.logs import LogFormat
from zhub_workers.actors import LightActor, TorchActor
from zhub_workers.attempt import Attempt, AttemptKey, AttemptStatus
from zhub_workers.launcher import POOLS, WorkerLostError, WorkerSilentError, has_room

log = logging.getLogger("zhub.agent")

NAMESPACE = "zhub"
CALL_TIMEOUT_S = 10.0
ACTORS = {"light": LightActor, "torch": TorchActor}


def connect(address: str | None) -> None:
    """Join the Ray cluster at ``address``; None starts one in this process."""
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        include_dashboard=False,
        configure_logging=False,
    )


class RayLauncher:
    """A pool of ``slots`` actors with torch and one without, in the cluster that this process has joined."""

    def __init__(
        self, *, slots: int, jobs_per_worker: int, device: str | None, gpus_per_worker: float, log_format: LogFormat
    ) -> None:
        self._sizes = {"light": 1, "torch": slots}
        self._jobs_per_worker = jobs_per_worker
        self._device = device
        self._gpus = gpus_per_worker
        self._log_format = log_format
        self._actors: dict[str, Any] = {}
        self._starting: dict[str, Any] = {}  # name -> the answer that says that it is up
        self._holds: dict[str, dict[AttemptKey, str | None]] = {}  # name -> attempts with their pack keys
        self._adopt_actors()
        self.fill_pools()

    def fill_pools(self) -> None:
        """Start actors until every pool has its size; they become free once they have answered."""
        for pool in POOLS:
            have = sum(name.startswith(_prefix(pool)) for name in (*self._actors, *self._starting))
            for _ in range(self._sizes[pool] - have):
                name = f"{_prefix(pool)}{uuid.uuid4().hex[:12]}"
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
                        num_cpus=0,
                        num_gpus=self._gpus if pool == "torch" else 0,
                    )
                    .remote(self._device, self._log_format)
                )
                self._starting[name] = (actor, actor.held.remote())
                log.info("worker %s: starting", name, extra={"action": "worker_starting", "worker": name})
        for name, (actor, answer) in list(self._starting.items()):
            ready, _ = ray.wait([answer], timeout=0)
            if ready:
                del self._starting[name]
                try:
                    ray.get(answer)
                except RayActorError as exc:
                    extra = {"action": "worker_start_failed", "worker": name}
                    log.error("worker %s did not start: %s", name, exc, extra=extra)
                    continue
                self._actors[name], self._holds[name] = actor, {}
                log.info("worker %s: ready", name, extra={"action": "worker_ready", "worker": name})

    def free(self, pool: str) -> int:
        return sum(not held for held in self._held(pool).values())

    def packs(self, pool: str) -> set[str]:
        return {
            pack
            for held in self._held(pool).values()
            for pack in held.values()
            if pack and has_room(held.values(), pack, jobs_per_worker=self._jobs_per_worker)
        }

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        name = self.running().get(attempt.key) or self._place(pool, attempt.pack_key)
        self._holds[name][attempt.key] = attempt.pack_key
        self._call(name, "start", attempt, lease_s)
        return name

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        name = self._holder(key)
        status: AttemptStatus | None = self._call(name, "poll", key, after_seq, lease_s)
        if status is None:
            del self._holds[name][key]
            raise WorkerLostError(f"no worker holds attempt {key}")
        return status

    def request_stop(self, key: AttemptKey) -> None:
        self._call(self._holder(key), "request_stop", key)

    def kill(self, key: AttemptKey) -> None:
        name = self.running().get(key)
        if name is not None:
            extra = {"action": "worker_killed", "worker": name, **key._asdict()}
            log.warning("worker %s: killed with attempt %s", name, key, extra=extra)
            ray.kill(self._actors[name], no_restart=True)
            self._drop(name)

    def forget(self, key: AttemptKey) -> None:
        name = self._holder(key)
        if self._call(name, "forget", key):
            del self._holds[name][key]

    def running(self) -> dict[AttemptKey, str]:
        return {key: name for name, held in self._holds.items() for key in held}

    def _adopt_actors(self) -> None:
        """Take over the actors that an earlier agent left, with the attempts that they hold."""
        for entry in ray.util.list_named_actors(all_namespaces=True):
            name = entry["name"]
            if entry["namespace"] != NAMESPACE or not any(name.startswith(_prefix(pool)) for pool in POOLS):
                continue
            try:
                actor: Any = ray.get_actor(name, namespace=NAMESPACE)
                held: list[tuple[AttemptKey, str | None]] = ray.get(actor.held.remote(), timeout=CALL_TIMEOUT_S)
            except (ValueError, RayActorError):
                continue
            except GetTimeoutError:
                extra = {"action": "worker_killed", "worker": name}
                log.warning("worker %s does not answer; killed", name, extra=extra)
                ray.kill(actor, no_restart=True)
                continue
            self._actors[name], self._holds[name] = actor, dict(held)
            attempts = ", ".join(str(key) for key, _ in held) or "no attempt"
            extra = {"action": "worker_adopted", "worker": name, "attempts": len(held)}
            log.info("worker %s: adopted, with %s", name, attempts, extra=extra)

    def _held(self, pool: str) -> dict[str, dict[AttemptKey, str | None]]:
        return {name: held for name, held in self._holds.items() if name.startswith(_prefix(pool))}

    def _place(self, pool: str, pack_key: str | None) -> str:
        """A free worker before one with room in a pack: two devices do more than one."""
        for name, held in sorted(self._held(pool).items(), key=lambda item: len(item[1])):
            if has_room(held.values(), pack_key, jobs_per_worker=self._jobs_per_worker):
                return name
        raise WorkerLostError(f"no worker of pool {pool} is free")

    def _holder(self, key: AttemptKey) -> str:
        name = self.running().get(key)
        if name is None:
            raise WorkerLostError(f"no worker holds attempt {key}")
        return name

    def _call(self, name: str, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._actors[name], method).remote(*arguments), timeout=CALL_TIMEOUT_S)
        except (GetTimeoutError, ActorUnavailableError) as exc:
            raise WorkerSilentError(f"worker {name} did not answer within {CALL_TIMEOUT_S:.0f} s") from exc
        except RayActorError as exc:
            self._drop(name)
            raise WorkerLostError(f"worker {name} died") from exc

    def _drop(self, name: str) -> None:
        self._actors.pop(name, None)
        self._holds.pop(name, None)


def gpus_in_cluster() -> float:
    """How many GPUs the joined cluster has, in use or not."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0)


def _prefix(pool: str) -> str:
    return f"zhub-{pool}-"
