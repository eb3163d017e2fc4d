"""The interface between the agent and the workers that run its attempts.

There are two implementations: detached Ray actors (``ray_launcher``), and threads of this process for tests.
"""

import threading
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Protocol

from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus, HeldAttempt, Runner
from zhub_workers.attempts.worker import Worker


class WorkerLostError(Exception):
    """The attempt's worker has died, and the attempt has ended with it."""


class WorkerSilentError(Exception):
    """The worker did not answer in time; the attempt may still run."""


class Launcher(Protocol):
    """Starts attempts and polls them. Each call returns within seconds, also when workers do not answer."""

    def restore_pool_sizes(self) -> None:
        """Replace workers that have died; return before the new ones are ready."""

    def clean_up(self) -> None:
        """Adopt an earlier agent's workers, remove leftovers of attempts, and note nodes that will go away."""

    def slots(self) -> int:
        """How many workers with torch are up or starting, plus the slots that shards occupy."""

    def free(self, pool: str) -> int:
        """How many workers of this pool are ready, hold no attempt, and are on a node that stays."""

    def packs(self, pool: str) -> set[str]:
        """The keys of the packs of this pool that have room for another attempt."""

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        """Start an attempt on a free worker, or else in its pack, and return the worker's name.

        Free workers are ended to make room for the attempt's shards: ``attempt.workers - 1`` of them. Starting an
        attempt that has already started does nothing and returns its worker's name.

        Raises:
            WorkerLostError: no worker is free and no pack has room, or the worker died.
            WorkerSilentError: the worker did not answer; the attempt may have started.
        """

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        """The attempt's state, and its events after ``after_seq``. Raises WorkerLostError, WorkerSilentError."""

    def request_stop(self, key: AttemptKey) -> None:
        """Ask the attempt to stop soon."""

    def kill(self, key: AttemptKey) -> None:
        """Kill the attempt's worker now, and with it the other attempts of its pack."""

    def forget(self, key: AttemptKey) -> None:
        """Free the slot of an attempt that has ended and whose end is recorded."""

    def running(self) -> dict[AttemptKey, str]:
        """Every attempt that a worker holds, with the worker's name."""

    def leaving(self) -> set[AttemptKey]:
        """The attempts whose worker's node will go away soon."""

    def died_on(self, key: AttemptKey) -> str | None:
        """The node on which the attempt's worker died; None if that is not known. Only the first call returns it."""

    def nodes(self) -> Set[str]:
        """The ids of the nodes that are alive and not draining; empty while Ray does not answer."""


def has_room(held: Iterable[HeldAttempt], pack_key: str | None, *, jobs_per_worker: int) -> bool:
    """Whether a worker may take an attempt with this pack key: it is free, or its pack has this key and room."""
    packs = [attempt.pack_key for attempt in held]
    return not packs or (pack_key is not None and set(packs) == {pack_key} and len(packs) < jobs_per_worker)


def open_packs(held: Iterable[Iterable[HeldAttempt]], *, jobs_per_worker: int) -> set[str]:
    """The keys of the packs that have room. Each item of ``held`` is what one worker holds."""
    return {
        attempt.pack_key
        for attempts in map(list, held)
        for attempt in attempts
        if attempt.pack_key and has_room(attempts, attempt.pack_key, jobs_per_worker=jobs_per_worker)
    }


def choose_worker(
    pool: str, workers: Mapping[str, Collection[HeldAttempt]], pack_key: str | None, *, jobs_per_worker: int
) -> str:
    """The name of the worker of ``pool`` that takes the next attempt. ``workers``: by name, what each one holds.

    A free worker comes before one with room in its pack, because two devices compute more than one.

    Raises:
        WorkerLostError: no worker is free and no pack has room.
    """
    for name, held in sorted(workers.items(), key=lambda item: len(item[1])):
        if has_room(held, pack_key, jobs_per_worker=jobs_per_worker):
            return name
    raise WorkerLostError(f"no worker of pool {pool} is free")


def holder_of(key: AttemptKey, running: Mapping[AttemptKey, str]) -> str:
    """The name of the worker that holds an attempt. Raises WorkerLostError if none does."""
    if key not in running:
        raise WorkerLostError(f"no worker holds attempt {key}")
    return running[key]


class ThreadLauncher:
    """One worker for each pool, in this process. A worker that is killed, or whose leases run out, is replaced."""

    def __init__(self, runners: Mapping[str, Runner], *, jobs_per_worker: int = 1) -> None:
        self._runners = runners
        self._jobs_per_worker = jobs_per_worker
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        for pool in runners:
            self._replace(pool, None)

    def restore_pool_sizes(self) -> None:
        return

    def clean_up(self) -> None:
        return

    def slots(self) -> int:
        return 1

    def free(self, pool: str) -> int:
        return 0 if self._workers[pool].held() else 1

    def packs(self, pool: str) -> set[str]:
        return open_packs([self._workers[pool].held()], jobs_per_worker=self._jobs_per_worker)

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        worker = self._workers[pool]
        held = worker.held()
        room = has_room(held, attempt.pack_key, jobs_per_worker=self._jobs_per_worker)
        if attempt.key not in [other.key for other in held] and not room:
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
            held_keys = [attempt.key for attempt in worker.held()]
            if key in held_keys:
                for held_key in held_keys:
                    worker.request_stop(held_key)
                self._replace(pool, worker)

    def forget(self, key: AttemptKey) -> None:
        for worker in self._workers.values():
            worker.forget(key)

    def running(self) -> dict[AttemptKey, str]:
        return {attempt.key: f"thread-{pool}" for pool, worker in self._workers.items() for attempt in worker.held()}

    def leaving(self) -> set[AttemptKey]:
        return set()

    def died_on(self, key: AttemptKey) -> str | None:
        return None

    def nodes(self) -> Set[str]:
        return set()

    def _replace(self, pool: str, gone: Worker | None) -> None:
        # When the leases of a worker that was already replaced run out, its replacement must stay.
        with self._lock:
            if self._workers.get(pool) is gone:
                new = Worker(self._runners[pool], exit_process=lambda _code: self._replace(pool, new))
                self._workers[pool] = new
