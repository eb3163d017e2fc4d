"""The process that runs attempts: each in a thread, until it ends or its lease does.

A worker outlives its attempts, so that an imported torch and a loaded base model serve the next one; those of one pack
run in it together. It knows no database: it gets a spec and returns a result, and whoever polls decides what becomes
of it.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zhub.errors import InvalidRequestError, StoreError, TrainingError, UnavailableError
from zhub.process import tracing
from zhub.process.logs import log_fields
from zhub.queue.attempts import Failure
from zhub.storage.cached_files import drop_unused
from zhub.storage.keys import attempts_prefix
from zhub_workers.attempts.attempt import (
    Attempt,
    AttemptContext,
    AttemptKey,
    AttemptStatus,
    AttemptStoppedError,
    HeldAttempt,
    Runner,
)
from zhub_workers.attempts.log import AttemptLog, collect_records, shipping

log = logging.getLogger("zhub.worker")

WATCH_S = 1.0
INFRASTRUCTURE = ("unavailable", "store_error", "store_away", "object_missing", "digest_mismatch")


class Worker:
    """A process that runs attempts with ``run``: one, or those of one pack together.

    ``exit_process`` ends the process when every lease has run out, so that a worker cut off from its agent frees its
    device. That only bounds waste: the fence keeps what it might still write from counting. An attempt whose lease
    alone runs out is asked to stop.
    """

    def __init__(self, run: Runner, *, exit_process: Callable[[int], None]) -> None:
        self._run = run
        self._exit_process = exit_process
        self._lock = threading.Lock()
        self._attempts: dict[AttemptKey, _Running] = {}
        collect_records()
        threading.Thread(target=self._end_unwatched, daemon=True, name="lease-watch").start()

    def start(self, attempt: Attempt, lease_s: float) -> None:
        """Begin an attempt; beginning the same one again changes nothing.

        Raises:
            RuntimeError: the worker holds an attempt that this one does not share a pack with.
        """
        with self._lock:
            if attempt.key in self._attempts:
                return
            for key, other in self._attempts.items():
                if attempt.pack_key is None or attempt.pack_key != other.pack_key:
                    raise RuntimeError(f"the worker still holds {key}")
            context = AttemptContext(AttemptLog(attempt.key.fence))
            running = _Running(attempt.pack_key, attempt.workers, time.monotonic() + lease_s, context)
            self._attempts[attempt.key] = running
        threading.Thread(target=self._run_attempt, args=(running, attempt), name="attempt", daemon=True).start()

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus | None:
        """How the attempt is doing, with its events after ``after_seq``; None if it is not here.

        The lease is taken as renewed for ``lease_s`` seconds from now.
        """
        running = self._attempts.get(key)
        if running is None:
            return None
        running.lease_deadline = time.monotonic() + lease_s
        ended, context = running.ended, running.context
        events = context.events_after(after_seq)
        if ended is None:
            return AttemptStatus("running", context.progress, events)
        return AttemptStatus(ended.state, context.progress, events, ended.result, ended.failure)

    def request_stop(self, key: AttemptKey) -> None:
        """Ask the attempt to end soon."""
        running = self._attempts.get(key)
        if running is not None:
            running.context.request_stop()

    def forget(self, key: AttemptKey) -> bool:
        """Drop an attempt that has ended, so that another may start. False if the attempt goes on."""
        with self._lock:
            running = self._attempts.get(key)
            if running is not None and running.ended is None:
                return False
            self._attempts.pop(key, None)
            return True

    def held(self) -> list[HeldAttempt]:
        """The attempts that are here, running or ended but not forgotten."""
        with self._lock:
            return [HeldAttempt(key, held.pack_key, held.workers) for key, held in self._attempts.items()]

    def _run_attempt(self, running: "_Running", attempt: Attempt) -> None:
        about: dict[str, str | int] = {"job_id": str(attempt.key.job_id), "fence": attempt.key.fence}
        prefix = attempts_prefix(attempt.org_id, attempt.key.job_id)
        try:
            with (
                tracing.span("attempt", parent=attempt.traceparent, kind=str(attempt.spec.get("kind")), **about),
                log_fields(**about, org_id=attempt.org_id),
            ):
                # Whoever learns that the attempt has ended finds its log whole.
                with shipping(running.context.log, attempt.store_url, prefix):
                    ended = self._run_to_its_end(running.context, attempt)
                running.ended = ended
        except BaseException as exc:  # of what is around the attempt: a thread for its log that cannot be started, say
            log.exception("attempt %s failed", attempt.key, extra={"action": "attempt_failed"})
            running.ended = running.ended or AttemptStatus("failed", 0, [], failure=classify(exc))

    def _run_to_its_end(self, context: AttemptContext, attempt: Attempt) -> AttemptStatus:
        try:
            drop_unused(attempt.cache_dir)
            return AttemptStatus("succeeded", 0, [], result=self._run(attempt, context))
        except AttemptStoppedError:
            return AttemptStatus("stopped", 0, [])
        except BaseException as exc:
            log.exception("attempt %s failed", attempt.key, extra={"action": "attempt_failed"})
            tracing.note_failure(exc)
            return AttemptStatus("failed", 0, [], failure=classify(exc))

    def _end_unwatched(self) -> None:
        """Watch the leases; a worker whose leases nobody watches any more ends."""
        try:
            self._watch_leases()
        except BaseException:
            log.critical("the leases are not watched, the worker ends", exc_info=True, extra={"action": "thread_died"})
            self._exit_process(1)

    def _watch_leases(self) -> None:
        while True:
            time.sleep(WATCH_S)
            now = time.monotonic()
            with self._lock:
                held = dict(self._attempts)
            expired = [key for key, running in held.items() if now > running.lease_deadline]
            for key in expired:
                held[key].context.request_stop()
            if expired and len(expired) == len(held):
                attempts = ", ".join(map(str, expired))
                log.error("the leases of %s ran out, the worker ends", attempts, extra={"action": "leases_expired"})
                self._exit_process(1)
                return


@dataclass
class _Running:
    pack_key: str | None
    workers: int
    lease_deadline: float
    context: AttemptContext
    ended: AttemptStatus | None = None


def classify(error: BaseException) -> Failure:
    """The failure that an exception means: whether a retry can help, and the message for the job's owner."""
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
