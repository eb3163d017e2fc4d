"""An attempt as the agent hands it to a worker, its status, and the context of the code that runs it."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zhub.queue.attempts import Failure
from zhub.queue.job_events import Event
from zhub.storage.keys import attempts_prefix
from zhub_workers.attempts.log import AttemptLog


class AttemptKey(NamedTuple):
    """Which attempt: a job and the fence it was claimed under."""

    job_id: uuid.UUID
    fence: int

    def __str__(self) -> str:
        return f"{self.job_id} f{self.fence}"


class HeldAttempt(NamedTuple):
    """An attempt that a worker holds, the key of its pack, and how many workers it takes with its shards."""

    key: AttemptKey
    pack_key: str | None
    workers: int


@dataclass(frozen=True)
class Attempt:
    """All that a worker needs to run an attempt."""

    key: AttemptKey
    org_id: uuid.UUID
    spec: dict[str, Any]
    store_url: str
    cache_dir: Path
    device: str | None
    pack_key: str | None = None
    """Attempts with the same one may share a worker, see ``zhub.training.packing``; None: it needs one of its own."""
    checkpoint: dict[str, Any] | None = None
    """``{"key_prefix", "digest", "step"}`` of what an earlier attempt left to go on from."""
    traceparent: str | None = None
    """The span that asked for the job."""
    workers: int = 1
    """How many workers' slots it was given: its own and those of its shards."""
    metric_sinks: tuple[str, ...] = ()
    """Where else its metrics go, see ``zhub_workers.training.metric_sinks``."""

    @property
    def key_prefix(self) -> str:
        """Where in the object store this attempt, and no other, writes."""
        return f"{attempts_prefix(self.org_id, self.key.job_id)}/{self.key.fence}"


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
    """What running code may say and ask: report an event, show progress, learn that it should stop.

    Events are lines of the attempt's log too. The worker reads ``progress`` and ``events_after``, and calls
    ``request_stop``.
    """

    log: AttemptLog
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
        self.log.add(level, "zhub.events", message)

    def note(self, level: str, message: str) -> None:
        """Add a line to the log that the job's owner reads, without an event."""
        self.log.add(level, "zhub.attempt", message)

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

    def request_stop(self) -> None:
        """Have ``should_stop`` answer yes from now on."""
        self._stop.set()

    @property
    def progress(self) -> int:
        """A number that grows while the attempt gets on."""
        return self._progress

    def events_after(self, seq: int) -> list[Event]:
        """The events whose number is larger, in their order."""
        with self._lock:
            return self._events[seq:]


Runner = Callable[[Attempt, AttemptContext], dict[str, Any]]
