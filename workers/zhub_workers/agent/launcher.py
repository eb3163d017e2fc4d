"""Where attempts run: the seam between the agent and whatever executes them.

Two implementations: detached Ray actors (``ray_launcher``), and threads of this process for tests.
"""

import threading
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Protocol

from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus, HeldAttempt, Runner
from zhub_workers.attempts.worker import Worker


class WorkerLostError(Exception):
    """The attempt's worker is gone, and the attempt with it."""


class WorkerSilentError(Exception):
    """The worker did not answer in time; the attempt may or may not go on."""


class Launcher(Protocol):
    """Starts attempts and asks after them. Each call returns within seconds, whatever the workers do."""

    def fill_pools(self) -> None:
        """Replace workers that are gone; returns before the new ones are ready."""

    def tidy(self) -> None:
        """Look for what nobody told: workers of an earlier agent, leftovers of attempts, nodes that will go away."""

    def slots(self) -> int:
        """How many workers with torch there are or will be soon, with the places that shards take instead."""

    def free(self, pool: str) -> int:
        """How many workers of this pool are ready, will stay, and hold nothing."""

    def packs(self, pool: str) -> set[str]:
        """The keys of the packs of this pool that have room for another attempt."""

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        """Begin an attempt on a free worker, or else in its pack, and return the worker's name.

        Free workers make way for its shards, as many as the attempt takes workers beside its own. Again for one that
        has begun, nothing happens and its worker's name is returned.

        Raises:
            WorkerLostError: no worker is free and no pack has room, or it died.
            WorkerSilentError: the worker did not answer; the attempt may or may not have begun.
        """

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        """How the attempt is doing. Raises WorkerLostError, WorkerSilentError."""

    def request_stop(self, key: AttemptKey) -> None:
        """Ask the attempt to end soon."""

    def kill(self, key: AttemptKey) -> None:
        """End the attempt's worker now, and with it the other attempts of its pack."""

    def forget(self, key: AttemptKey) -> None:
        """The attempt has ended and its end is recorded: its place is free again."""

    def running(self) -> dict[AttemptKey, str]:
        """Every attempt that some worker holds, with the worker's name."""

    def leaving(self) -> set[AttemptKey]:
        """The attempts whose worker will go away soon, with its node."""

    def died_on(self, key: AttemptKey) -> str | None:
        """Where the attempt's worker was seen to die. Said once; None: it was not seen."""

    def nodes(self) -> Set[str]:
        """The nodes that live and stay, as far as known."""


def has_room(held: Iterable[HeldAttempt], pack_key: str | None, *, jobs_per_worker: int) -> bool:
    """Whether a worker may take an attempt with this pack key: it is free, or holds some of the same pack."""
    packs = [one.pack_key for one in held]
    return not packs or (pack_key is not None and set(packs) == {pack_key} and len(packs) < jobs_per_worker)


def open_packs(held: Iterable[Iterable[HeldAttempt]], *, jobs_per_worker: int) -> set[str]:
    """The keys of the packs that have room, where each worker holds one of ``held``."""
    return {
        one.pack_key
        for attempts in map(list, held)
        for one in attempts
        if one.pack_key and has_room(attempts, one.pack_key, jobs_per_worker=jobs_per_worker)
    }


def choose_worker(
    pool: str, workers: Mapping[str, Collection[HeldAttempt]], pack_key: str | None, *, jobs_per_worker: int
) -> str:
    """The worker that takes an attempt next, of those of ``pool`` by name, each with what it holds.

    A free one before one with room in a pack: two devices do more than one.

    Raises:
        WorkerLostError: none is free and no pack has room.
    """
    for name, held in sorted(workers.items(), key=lambda item: len(item[1])):
        if has_room(held, pack_key, jobs_per_worker=jobs_per_worker):
            return name
    raise WorkerLostError(f"no worker of pool {pool} is free")


def holder_of(key: AttemptKey, running: Mapping[AttemptKey, str]) -> str:
    """The worker that holds an attempt, of those that run. Raises WorkerLostError where none does."""
    if key not in running:
        raise WorkerLostError(f"no worker holds attempt {key}")
    return running[key]


class ThreadLauncher:
    """One worker per pool in this process. A worker that is killed, or whose leases run out, is replaced."""

    def __init__(self, runners: Mapping[str, Runner], *, jobs_per_worker: int = 1) -> None:
        self._runners = runners
        self._jobs_per_worker = jobs_per_worker
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        for pool in runners:
            self._replace(pool, None)

    def fill_pools(self) -> None:
        return

    def tidy(self) -> None:
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
        if attempt.key not in [one.key for one in held] and not room:
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
            held = [one.key for one in worker.held()]
            if key in held:
                for other in held:
                    worker.request_stop(other)
                self._replace(pool, worker)

    def forget(self, key: AttemptKey) -> None:
        for worker in self._workers.values():
            worker.forget(key)

    def running(self) -> dict[AttemptKey, str]:
        return {one.key: f"thread-{pool}" for pool, worker in self._workers.items() for one in worker.held()}

    def leaving(self) -> set[AttemptKey]:
        return set()

    def died_on(self, key: AttemptKey) -> str | None:
        return None

    def nodes(self) -> Set[str]:
        return set()

    def _replace(self, pool: str, gone: Worker | None) -> None:
        # A worker that was replaced already must not take its replacement along when its leases run out.
        with self._lock:
            if self._workers.get(pool) is gone:
                new = Worker(self._runners[pool], exit_process=lambda _code: self._replace(pool, new))
                self._workers[pool] = new
