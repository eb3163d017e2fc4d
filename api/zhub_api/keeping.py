"""Completions on their way into the database, once they are whole: no answer waits for that.

Each is written by a thread of the process, in the order in which the answers ended. While the database is away they
wait in memory, as many bytes as MAX_WAITING_BYTES; what comes then is lost, counted and logged.
"""

import logging
import queue
import threading

from sqlalchemy import Engine

from zhub.completions.storing import Completion, store
from zhub.database.sessions import tenant_session
from zhub.errors import UnavailableError
from zhub_api.observed import COMPLETIONS_LOST, COMPLETIONS_STORED

MAX_WAITING_BYTES = 64 << 20
RETRY_S = 1.0
POLL_S = 0.2
DRAIN_S = 2.0  # of the ten seconds in which the process stops

log = logging.getLogger("zhub.api")


class CompletionKeeper:
    """Stores completions in a thread, which runs ``run``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.SimpleQueue[tuple[Completion, int]] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._drained = threading.Event()

    def keep(self, completion: Completion, size_bytes: int) -> None:
        """Have it stored soon. Never waits."""
        with self._lock:
            fits = self._waiting_bytes + size_bytes <= MAX_WAITING_BYTES
            if fits:
                self._waiting_bytes += size_bytes
        if fits:
            self._waiting.put((completion, size_bytes))
        else:
            _lose(completion, "too_many", None)

    def run(self, stopping: threading.Event) -> None:
        """Store what comes until ``stopping`` is set, and then what has come."""
        while not (stopping.is_set() and self._waiting.empty()):
            try:
                completion, size_bytes = self._waiting.get(timeout=POLL_S)
            except queue.Empty:
                continue
            self._store(completion, stopping)
            with self._lock:
                self._waiting_bytes -= size_bytes
        self._drained.set()

    def wait_drained(self) -> None:
        """Return once all is stored, or after ``DRAIN_S``: what waits then is lost with the process."""
        if not self._drained.wait(DRAIN_S):
            count = self._waiting.qsize() + 1
            extra = {"action": "completion_lost", "reason": "stopped", "completions": count}
            log.error("about %d completions are not stored: the process stops", count, extra=extra)

    def _store(self, completion: Completion, stopping: threading.Event) -> None:
        """Store it, as often as it takes while the database is away, unless the process stops."""
        while True:
            try:
                with tenant_session(self._engine, completion.org_id) as session:
                    stored = store(session, completion)
            except UnavailableError as exc:
                if stopping.is_set():
                    return _lose(completion, "stopped", exc)
                stopping.wait(RETRY_S)
            except Exception as exc:  # one that cannot be stored must not stop all others
                return _lose(completion, "failed", exc)
            else:
                COMPLETIONS_STORED.inc(1 if stored else 0)
                return None


def _lose(completion: Completion, reason: str, exc: Exception | None) -> None:
    COMPLETIONS_LOST.labels(reason).inc()
    extra = {"action": "completion_lost", "org_id": completion.org_id, "reason": reason}
    log.error("chatcmpl-%s is not stored: %s", completion.completion_id.hex, reason, exc_info=exc, extra=extra)
