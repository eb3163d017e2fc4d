"""The log of a job: the lines that its attempts printed, as JSON in numbered chunks in the object store.

Each attempt writes chunks 0, 1, 2, … below its own prefix, in order, and never changes a written chunk, so a reader can
continue where it stopped. A line is ``{"at", "level", "logger", "message", "fence"}``; ``at`` is the worker's clock.
"""

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Self

from sqlalchemy import Engine, func, select, tuple_

from zhub.database.sessions import system_session
from zhub.errors import InvalidRequestError, ObjectMissingError
from zhub.models import Attempt
from zhub.storage.keys import attempts_prefix
from zhub.storage.object_store import ObjectStore

SWEEP_WINDOW = timedelta(days=7)
SWEEP_BATCH = 100  # attempts; each one costs a listing of the store

_CHUNK = re.compile(r"/attempts/(\d+)/logs/(\d{6,})\.jsonl$")
_POSITION = re.compile(r"(\d{1,18})/(\d{1,18})/(\d{1,18})")


class Chunk(NamedTuple):
    """Identifies a chunk of a job's log."""

    fence: int
    number: int


class Position(NamedTuple):
    """Identifies a line of a job's log. ``fence`` counts from 1, ``chunk`` and ``line`` from 0."""

    fence: int
    chunk: int
    line: int

    def __str__(self) -> str:
        return f"{self.fence}/{self.chunk}/{self.line}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequestError."""
        if (match := _POSITION.fullmatch(text)) is None:
            raise InvalidRequestError(
                f"'{text}' names no line of a log: expected fence/chunk/line, as a stream gives it as the id of each "
                "line. Leave it away to begin with the first line.",
                param="after",
            )
        return cls(*map(int, match.groups()))


@dataclass(frozen=True)
class Line:
    """A line with its position; ``content`` is the JSON object that was stored."""

    position: Position
    content: str


def chunk_key(attempts: str, chunk: Chunk) -> str:
    """The key of a chunk; ``attempts`` is what ``attempts_prefix`` gives."""
    return f"{attempts}/{chunk.fence}/logs/{chunk.number:06d}.jsonl"


def list_chunks(store: ObjectStore, attempts: str, *, fence: int | None = None) -> list[Chunk]:
    """The stored chunks of all attempts or of one, in the log's order. Raises StoreError."""
    within = f"{attempts}/" if fence is None else f"{attempts}/{fence}/logs/"
    matches = (_CHUNK.search(key) for key in store.keys(within))
    return sorted(Chunk(int(match[1]), int(match[2])) for match in matches if match)


def read_chunk(store: ObjectStore, attempts: str, chunk: Chunk, *, after_line: int = -1) -> list[Line] | None:
    """The lines of a chunk after line ``after_line``, or None if the chunk does not exist (yet). Raises StoreError."""
    try:
        content = b"".join(store.open(chunk_key(attempts, chunk)))
    except ObjectMissingError:
        return None
    lines = content.decode().splitlines()
    # JSON escapes line breaks within strings, so splitlines splits only at the end of each object.
    return [Line(Position(*chunk, number), line) for number, line in enumerate(lines) if number > after_line]


def read_lines(store: ObjectStore, attempts: str, chunks: Sequence[Chunk]) -> Iterator[Line]:
    """Every line of the chunks, in order. Raises StoreError."""
    for chunk in chunks:
        yield from read_chunk(store, attempts, chunk) or ()


def read_tail(store: ObjectStore, attempts: str, chunks: Sequence[Chunk], count: int) -> list[Line]:
    """The last ``count`` lines of the chunks, read from the end. Raises StoreError."""
    lines: list[Line] = []
    for chunk in reversed(chunks):
        if len(lines) >= count:
            break
        lines = (read_chunk(store, attempts, chunk) or []) + lines
    return lines[-count:]


def encode_line(at: datetime, level: str, logger: str, message: str, fence: int) -> bytes:
    """A line as it is stored; ``at`` is in UTC."""
    when = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"at": when, "level": level, "logger": logger, "message": message, "fence": fence}
    return json.dumps(line).encode() + b"\n"


class Swept(NamedTuple):
    """The last attempt whose logs were swept, by (``ended_at``, ``attempt_id``)."""

    ended_at: datetime
    attempt_id: uuid.UUID


def sweep(engine: Engine, store: ObjectStore, *, kept: timedelta, after: Swept | None) -> tuple[int, Swept | None]:
    """Remove the logs of the next attempts that ended more than ``kept`` ago; return how many objects, and the last.

    The database does not record that a log was removed, so the caller remembers the last swept attempt and passes it as
    ``after``. If it is None, the sweep starts with the attempts that became old enough within SWEEP_WINDOW.

    Raises:
        StoreError, UnavailableError: nothing is lost; sweep again with the same ``after``.
    """
    age = func.now() - kept
    statement = select(Attempt.ended_at, Attempt.id, Attempt.org_id, Attempt.job_id, Attempt.fence).where(
        Attempt.ended_at <= age, Attempt.ended_at > age - SWEEP_WINDOW
    )
    if after is not None:
        statement = statement.where(tuple_(Attempt.ended_at, Attempt.id) > after)
    with system_session(engine) as session:
        due = session.execute(statement.order_by(Attempt.ended_at, Attempt.id).limit(SWEEP_BATCH)).all()
    removed = 0
    for ended_at, attempt_id, org_id, job_id, fence in due:
        attempts = attempts_prefix(org_id, job_id)
        for chunk in list_chunks(store, attempts, fence=fence):
            store.delete(chunk_key(attempts, chunk))
            removed += 1
        assert ended_at is not None  # the query asks for those that have ended
        after = Swept(ended_at, attempt_id)
    return removed, after
