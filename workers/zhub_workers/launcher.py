"""Where attempts run: the seam between the agent and whatever executes them.

Two implementations: detached Ray actors (``ray_launcher``), and threads of this process for tests.
"""

import threading
from collections.abc import Mapping
from typing import Protocol

from zhub.jobs import LIGHT_KINDS
from zhub_workers.attempt import Attempt, AttemptKey, AttemptStatus, Runner, Worker


class WorkerLostError(Exception):
    """The attempt's worker is gone, and the attempt with it."""


class WorkerSilentError(Exception):
    """The worker did not answer in time; the attempt may or may not go on."""


class Launcher(Protocol):
    """Starts attempts and asks after them. Each call returns within seconds, whatever the workers do."""

    def fill_pools(self) -> None:
        """Replace workers that are gone; returns before the new ones are ready."""

    def free(self, pool: str) -> bool:
        """Whether a worker of this pool is ready and idle."""

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        """Begin an attempt on a free worker and return the worker's name; again for one that has begun, its worker's.

        Raises:
            WorkerLostError: no worker is free, or it died.
            WorkerSilentError: the worker did not answer; the attempt may or may not have begun.
        """

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        """How the attempt is doing. Raises WorkerLostError, WorkerSilentError."""

    def request_stop(self, key: AttemptKey) -> None:
        """Ask the attempt to end soon."""

    def kill(self, key: AttemptKey) -> None:
        """End the attempt's worker now."""

    def forget(self, key: AttemptKey) -> None:
        """The attempt has ended and its end is recorded: its worker is free again."""

    def running(self) -> dict[AttemptKey, str]:
        """Every attempt that some worker holds, with the worker's name."""


POOLS = ("light", "torch")


def pool_of(kind: str) -> str:
    """Which workers run a kind of job: those without torch, or those with."""
    return "light" if kind in LIGHT_KINDS else "torch"


def kinds_of(pool: str) -> list[str]:
    """The kinds of job that a pool's workers run."""
    return list(LIGHT_KINDS) if pool == "light" else ["decompose", "train", "evaluate"]


class ThreadLauncher:
    """One worker per pool in this process. A worker that is killed, or whose lease runs out, is replaced."""

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        self._runners = runners
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        for pool in runners:
            self._replace(pool, None)

    def fill_pools(self) -> None:
        return

    def free(self, pool: str) -> bool:
        return self._workers[pool].current() is None

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        worker = self._workers[pool]
        if worker.current() not in (None, attempt.key):
            raise WorkerLostError(f"no worker of pool {pool} is free")
        worker.start(attempt, lease_s)
        return f"thread-{pool}"

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        for worker in self._workers.values():
            status = worker.poll(key, after_seq, lease_s)
            if status is not None:
                return status
        raise WorkerLostError(f"no worker holds attempt {key}")

    def request_stop(self, key: AttemptKey) -> None:
        for worker in self._workers.values():
            worker.request_stop(key)

    def kill(self, key: AttemptKey) -> None:
        for pool, worker in list(self._workers.items()):
            if worker.current() == key:
                worker.request_stop(key)
                self._replace(pool, worker)

    def forget(self, key: AttemptKey) -> None:
        for worker in self._workers.values():
            worker.forget(key)

    def running(self) -> dict[AttemptKey, str]:
        held = {worker.current(): f"thread-{pool}" for pool, worker in self._workers.items()}
        return {key: name for key, name in held.items() if key is not None}

    def _replace(self, pool: str, gone: Worker | None) -> None:
        # A worker that was replaced already must not take its replacement along when its lease runs out.
        with self._lock:
            if self._workers.get(pool) is gone:
                new = Worker(self._runners[pool], exit_process=lambda _code: self._replace(pool, new))
                self._workers[pool] = new
