"""The log of an attempt, on its way to the object store: what its owner may read of it, see ``zhub.queue.job_logs``.

Records of any logger go to the log of the attempt in whose context they are made, so those of a pack never mix; a
record outside an attempt goes to none. A thread for each attempt stores the lines in chunks. Logging never waits for
the store and never fails: what cannot be stored stays in memory up to a limit, and then the oldest goes.
"""

import io
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from urllib.parse import urlsplit

from zhub.queue.job_logs import Chunk, chunk_key, encode_line
from zhub.storage.object_store import open_store

log = logging.getLogger("zhub.worker")

CHUNK_BYTES = 64 << 10
ATTEMPT_BYTES = 10 << 20
ERROR_BYTES = 256 << 10  # on top: why an attempt failed is said also where its log is full
UNSENT_BYTES = 2 << 20
MESSAGE_CHARACTERS = 8000
MIN_FLUSH_S, MAX_FLUSH_S = 2.0, 15.0
FLUSH_SHARE = 1 / 20  # of an attempt's age: 15 s from five minutes on
CLOSE_S = 5.0  # half of what an attempt that is asked to stop has before its worker is killed
LATE_S = 600.0  # how long the lines of an attempt that has ended wait for a store that is away
LEVELS = {"warn": "warning"}

_SECRET_NAME = re.compile(r"SECRET|PASSWORD|_TOKEN$|DATABASE_URL|REDIS_URL|API_KEY")
_MIN_SECRET_CHARACTERS = 8
_current: ContextVar["AttemptLog | None"] = ContextVar("zhub_attempt_log", default=None)


class AttemptLog:
    """The lines of one attempt that are not stored yet. Thread-safe; what it is told it keeps or counts."""

    def __init__(self, fence: int) -> None:
        self.fence = fence
        self.due = threading.Event()
        """Set while a whole chunk is there, and from its end on."""
        self.ended = threading.Event()
        self._lines: deque[bytes] = deque()
        self._bytes = 0  # of those lines
        self._taken_bytes = 0  # of all lines that there were
        self._full = False
        self._dropped = 0
        self._lock = threading.Lock()

    def add(self, level: str, logger: str, message: str) -> None:
        """Add a line; ``level`` in lower case, as in ``logging`` or in an event."""
        line = self._encoded(LEVELS.get(level, level), logger, _shortened(message))
        with self._lock:
            limit = ATTEMPT_BYTES + (ERROR_BYTES if level in ("error", "critical") else 0)
            if self._taken_bytes + len(line) > limit:
                if not self._full:
                    self._full = True
                    said = f"The log of this attempt is full ({ATTEMPT_BYTES >> 20} MiB): only errors follow."
                    self._append(self._encoded("warning", "zhub.worker", said))
                return
            self._append(line)

    def take(self) -> bytes:
        """Take the next lines, at most a chunk of them; nothing where there are none."""
        with self._lock:
            taken = []
            if self._dropped:
                said = f"{self._dropped} lines are left out here: the object store did not take them in time."
                taken.append(self._encoded("warning", "zhub.worker", said))
                self._dropped = 0
            room = CHUNK_BYTES
            while self._lines and (not taken or len(self._lines[0]) <= room):
                line = self._lines.popleft()
                self._bytes -= len(line)
                room -= len(line)
                taken.append(line)
            if self._bytes < CHUNK_BYTES and not self.ended.is_set():
                self.due.clear()
            return b"".join(taken)

    def end(self) -> None:
        """Say that no more lines come."""
        with self._lock:
            self.ended.set()
            self.due.set()

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        self._taken_bytes += len(line)
        while self._bytes > UNSENT_BYTES:
            self._bytes -= len(self._lines.popleft())
            self._dropped += 1
        if self._bytes >= CHUNK_BYTES:
            self.due.set()

    def _encoded(self, level: str, logger: str, message: str) -> bytes:
        return encode_line(datetime.now(UTC), level, logger, message, self.fence)


@contextmanager
def shipping(attempt_log: AttemptLog, store_url: str, attempts: str) -> Iterator[None]:
    """Collect what is logged within, and store it below ``attempts``, see ``zhub.storage.keys``.

    At its end it waits ``CLOSE_S`` at most for the last lines to be stored; those of a store that is away follow when
    it is back.
    """
    shipper = threading.Thread(target=_ship, args=(attempt_log, store_url, attempts), daemon=True, name="attempt-log")
    shipper.start()
    token = _current.set(attempt_log)
    try:
        yield
    finally:
        _current.reset(token)
        attempt_log.end()
        shipper.join(CLOSE_S)


def _ship(attempt_log: AttemptLog, store_url: str, attempts: str) -> None:
    """Store chunk after chunk. One that the store refuses is tried again as it is: it may have arrived."""
    began = time.monotonic()
    give_up = math.inf
    store = None
    number, unsent = 0, b""
    while time.monotonic() < give_up:
        ended = attempt_log.ended.is_set()
        if ended and give_up == math.inf:
            give_up = time.monotonic() + LATE_S
        was_away = bool(unsent)
        unsent = unsent or attempt_log.take()
        try:
            while unsent:
                store = store or open_store(store_url)
                store.put(chunk_key(attempts, Chunk(attempt_log.fence, number)), io.BytesIO(unsent))
                number, unsent = number + 1, attempt_log.take()
        except Exception as exc:  # whatever it is, training goes on
            if not was_away:
                log.warning("the log of an attempt waits: %s", exc, extra={"action": "attempt_log_waits"})
        if ended and not unsent:
            return
        interval_s = min(MAX_FLUSH_S, max(MIN_FLUSH_S, (time.monotonic() - began) * FLUSH_SHARE))
        if not unsent:
            attempt_log.due.wait(interval_s)
        elif ended:
            time.sleep(MIN_FLUSH_S)
        else:  # a whole chunk is no reason to ask a store at once that was away
            attempt_log.ended.wait(interval_s)


class _Collector(logging.Handler):
    """Gives a record to the log of the attempt that made it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.secrets: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        attempt_log = _current.get()
        if attempt_log is None:
            return
        try:
            message = self.format(record)
            for secret in self.secrets:
                message = message.replace(secret, "[secret]")
            attempt_log.add(record.levelname.lower(), record.name, message)
        except Exception:
            self.handleError(record)


_collector = _Collector()


def collect_records(environment: Mapping[str, str] = os.environ) -> None:
    """Have the records of this process go to the attempts that make them, warnings of libraries among them.

    Passwords and keys of the environment are replaced by ``[secret]``. Doing it again changes nothing.
    """
    _collector.secrets = _secrets(environment)
    logging.getLogger().addHandler(_collector)
    logging.captureWarnings(True)


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Values that no log may show, the longest first."""
    secrets = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    secrets |= {password for value in environment.values() if (password := _password(value))}
    return sorted((value for value in secrets if len(value) >= _MIN_SECRET_CHARACTERS), key=len, reverse=True)


def _password(value: str) -> str | None:
    if "://" not in value:
        return None
    try:
        return urlsplit(value).password
    except ValueError:
        return None


def _shortened(message: str) -> str:
    """The beginning and the end of a long message: of a traceback both matter."""
    if len(message) <= MESSAGE_CHARACTERS:
        return message
    half = MESSAGE_CHARACTERS // 2
    return f"{message[:half]}\n… {len(message) - 2 * half:,} characters left out …\n{message[-half:]}"
