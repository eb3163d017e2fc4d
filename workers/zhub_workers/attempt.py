"""One attempt inside a worker process: it runs in a thread, reports through ``poll``, and ends itself with its lease.

A worker outlives its attempts, so that an imported torch and a loaded base model serve the next one; it runs one at a
time. It knows no database: it gets a spec and returns a result, and whoever polls decides what becomes of it.
"""

import logging
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zhub.errors import InvalidRequestError, StoreError, TrainingError, UnavailableError
from zhub.jobs import Event, Failure

log = logging.getLogger("zhub.worker")

WATCH_S = 1.0


class AttemptKey(NamedTuple):
    """Which attempt: a job and the fence it was claimed under."""

    job_id: uuid.UUID
    fence: int

    def __str__(self) -> str:
        return f"{self.job_id} f{self.fence}"


@dataclass(frozen=True)
class Attempt:
    """All that a worker needs to run an attempt."""

    key: AttemptKey
    org_id: uuid.UUID
    spec: dict[str, Any]
    store_url: str
    cache_dir: Path
    device: str | None
    checkpoint: dict[str, Any] | None = None
    """``{"key_prefix", "digest", "step"}`` of what an earlier attempt left to go on from."""

    @property
    def key_prefix(self) -> str:
        """Where in the object store this attempt, and no other, writes."""
        return f"t/{self.org_id.hex}/jobs/{self.key.job_id.hex}/attempts/{self.key.fence}"


@dataclass(frozen=True)
class AttemptStatus:
    """The answer to a poll. ``progress`` grows while the attempt gets on; ``result`` comes with ``succeeded``."""

    state: Literal["running", "succeeded", "failed", "stopped"]
    progress: int
    events: list[Event]
    result: dict[str, Any] | None = None
    failure: Failure | None = None


class AttemptStoppedError(Exception):
    """The attempt ended because it was asked to."""


@dataclass
class AttemptContext:
    """What running code may say and ask: report an event, show progress, learn that it should stop."""

    _events: list[Event] = field(default_factory=list)
    _progress: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, level: str, message: str, data: dict[str, Any] | None = None) -> None:
        """Report something to the job's owner; ``data["type"] == "metrics"`` makes it a point of its curves."""
        with self._lock:
            kind = "metrics" if data is not None and data.get("type") == "metrics" else "message"
            self._events.append(Event(len(self._events) + 1, level, kind, message, data))
            self._progress += 1

    def progressed(self) -> None:
        """Say that work goes on although there is nothing to report; without it a long step looks stuck."""
        self._progress += 1

    def should_stop(self) -> bool:
        """Asked between small steps, so each question also shows progress."""
        self._progress += 1
        return self._stop.is_set()

    def raise_if_stopped(self) -> None:
        if self.should_stop():
            raise AttemptStoppedError


Runner = Callable[[Attempt, AttemptContext], dict[str, Any]]


class Worker:
    """A process that runs attempts one after another with ``run``.

    ``exit_process`` ends the process when the lease runs out, so that a worker cut off from its agent frees its
    device. That only bounds waste: the fence keeps what it might still write from counting.
    """

    def __init__(self, run: Runner, *, exit_process: Callable[[int], None] = os._exit) -> None:
        self._run = run
        self._exit_process = exit_process
        self._attempt: _Running | None = None
        threading.Thread(target=self._watch_lease, daemon=True, name="lease-watch").start()

    def start(self, attempt: Attempt, lease_s: float) -> None:
        """Begin an attempt; beginning the same one again changes nothing.

        Raises:
            RuntimeError: the worker runs another attempt.
        """
        if self._attempt is not None:
            if self._attempt.key == attempt.key:
                return
            raise RuntimeError(f"the worker still runs {self._attempt.key}")
        self._attempt = _Running(attempt.key, time.monotonic() + lease_s)
        threading.Thread(target=self._run_attempt, args=(self._attempt, attempt), name="attempt", daemon=True).start()

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus | None:
        """How the attempt is doing, with its events after ``after_seq``; None if it is not here.

        The lease is taken as renewed for ``lease_s`` seconds from now.
        """
        running = self._attempt
        if running is None or running.key != key:
            return None
        running.lease_deadline = time.monotonic() + lease_s
        ended, context = running.ended, running.context
        with context._lock:
            events = context._events[after_seq:]
        if ended is None:
            return AttemptStatus("running", context._progress, events)
        return AttemptStatus(ended.state, context._progress, events, ended.result, ended.failure)

    def request_stop(self, key: AttemptKey) -> None:
        """Ask the attempt to end soon."""
        if self._attempt is not None and self._attempt.key == key:
            self._attempt.context._stop.set()

    def forget(self, key: AttemptKey) -> bool:
        """Drop an attempt that has ended: the worker is free again. False if the attempt goes on."""
        if self._attempt is not None and self._attempt.key == key:
            if self._attempt.ended is None:
                return False
            self._attempt = None
        return True

    def current(self) -> AttemptKey | None:
        """The attempt that is here, running or ended but not forgotten."""
        return self._attempt.key if self._attempt is not None else None

    def _run_attempt(self, running: "_Running", attempt: Attempt) -> None:
        try:
            running.ended = AttemptStatus("succeeded", 0, [], result=self._run(attempt, running.context))
        except AttemptStoppedError:
            running.ended = AttemptStatus("stopped", 0, [])
        except BaseException as exc:
            log.exception("attempt %s failed", attempt.key)
            running.ended = AttemptStatus("failed", 0, [], failure=classify(exc))

    def _watch_lease(self) -> None:
        while True:
            time.sleep(WATCH_S)
            running = self._attempt
            if running is not None and time.monotonic() > running.lease_deadline:
                log.error("attempt %s: the lease ran out, the worker ends", running.key)
                self._exit_process(1)
                return


@dataclass
class _Running:
    key: AttemptKey
    lease_deadline: float
    context: AttemptContext = field(default_factory=AttemptContext)
    ended: AttemptStatus | None = None


INFRASTRUCTURE = ("unavailable", "store_error", "object_missing", "digest_mismatch")


def classify(error: BaseException) -> Failure:
    """What an exception means for its job: whether trying again can help, and what to tell its owner."""
    # It may quote anything; the database refuses NUL and halves of characters.
    message = str(error).replace("\0", "\ufffd").encode(errors="replace").decode()
    match error:
        case TrainingError() | InvalidRequestError():
            return Failure(error.code, message, param=getattr(error, "param", None))
        case StoreError() | UnavailableError():
            return Failure(error.code, message, retryable=True)
        case MemoryError():
            return Failure("out_of_memory", "The worker ran out of memory. Lower batch_size or group_size.")
        case _:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            return Failure("internal_error", f"{type(error).__name__}: {message} (at {where})", retryable=True)
