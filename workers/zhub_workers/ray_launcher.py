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

from zhub_workers.actors import LightActor, TorchActor
from zhub_workers.attempt import Attempt, AttemptKey, AttemptStatus
from zhub_workers.launcher import POOLS, WorkerLostError, WorkerSilentError

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

    def __init__(self, *, slots: int, device: str | None, gpus_per_worker: float) -> None:
        self._sizes = {"light": 1, "torch": slots}
        self._device = device
        self._gpus = gpus_per_worker
        self._actors: dict[str, Any] = {}
        self._starting: dict[str, Any] = {}  # name -> the answer that says that it is up
        self._holds: dict[str, AttemptKey] = {}
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
                    .remote(self._device)
                )
                self._starting[name] = (actor, actor.current.remote())
                log.info("worker %s: starting", name)
        for name, (actor, answer) in list(self._starting.items()):
            ready, _ = ray.wait([answer], timeout=0)
            if ready:
                del self._starting[name]
                try:
                    ray.get(answer)
                except RayActorError as exc:
                    log.error("worker %s did not start: %s", name, exc)
                    continue
                self._actors[name] = actor
                log.info("worker %s: ready", name)

    def free(self, pool: str) -> bool:
        return self._idle(pool) is not None

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        name = self.running().get(attempt.key) or self._idle(pool)
        if name is None:
            raise WorkerLostError(f"no worker of pool {pool} is free")
        self._holds[name] = attempt.key
        self._call(name, "start", attempt, lease_s)
        return name

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        status: AttemptStatus | None = self._call(self._holder(key), "poll", key, after_seq, lease_s)
        if status is None:
            self._holds.pop(self._holder(key), None)
            raise WorkerLostError(f"no worker holds attempt {key}")
        return status

    def request_stop(self, key: AttemptKey) -> None:
        self._call(self._holder(key), "request_stop", key)

    def kill(self, key: AttemptKey) -> None:
        name = next((name for name, held in self._holds.items() if held == key), None)
        if name is not None:
            log.warning("worker %s: killed with attempt %s", name, key)
            ray.kill(self._actors[name], no_restart=True)
            self._drop(name)

    def forget(self, key: AttemptKey) -> None:
        name = self._holder(key)
        if self._call(name, "forget", key):
            self._holds.pop(name, None)

    def running(self) -> dict[AttemptKey, str]:
        return {key: name for name, key in self._holds.items()}

    def _adopt_actors(self) -> None:
        """Take over the actors that an earlier agent left, with the attempts that they hold."""
        for entry in ray.util.list_named_actors(all_namespaces=True):
            name = entry["name"]
            if entry["namespace"] != NAMESPACE or not any(name.startswith(_prefix(pool)) for pool in POOLS):
                continue
            try:
                actor: Any = ray.get_actor(name, namespace=NAMESPACE)
                key: tuple[uuid.UUID, int] | None = ray.get(actor.current.remote(), timeout=CALL_TIMEOUT_S)
            except (ValueError, RayActorError):
                continue
            except GetTimeoutError:
                log.warning("worker %s does not answer; killed", name)
                ray.kill(actor, no_restart=True)
                continue
            self._actors[name] = actor
            if key is not None:
                self._holds[name] = AttemptKey(*key)
            log.info("worker %s: adopted%s", name, f" with attempt {AttemptKey(*key)}" if key else "")

    def _idle(self, pool: str) -> str | None:
        return next((name for name in self._actors if name.startswith(_prefix(pool)) and name not in self._holds), None)

    def _holder(self, key: AttemptKey) -> str:
        for name, held in self._holds.items():
            if held == key:
                return name
        raise WorkerLostError(f"no worker holds attempt {key}")

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
