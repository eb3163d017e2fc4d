"""The log of a job: what its attempts printed, as JSON lines in numbered chunks of the object store.

Each attempt writes chunks 0, 1, 2, … below its own prefix, one after the other and none twice with other bytes, so a
reader goes on where it was. A line is ``{"at", "level", "logger", "message", "fence"}``; ``at`` is the worker's clock.
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
SWEEP_BATCH = 100  # attempts, each a listing of the store

_CHUNK = re.compile(r"/attempts/(\d+)/logs/(\d{6,})\.jsonl$")
_POSITION = re.compile(r"(\d{1,18})/(\d{1,18})/(\d{1,18})")


class Chunk(NamedTuple):
    """Which chunk of a job's log."""

    fence: int
    number: int


class Position(NamedTuple):
    """Which line of a job's log: fence, chunk and line count from where each begins, at 1, 0 and 0."""

    fence: int
    chunk: int
    line: int

    def __str__(self) -> str:
        return f"{self.fence}/{self.chunk}/{self.line}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequestError."""
        if (found := _POSITION.fullmatch(text)) is None:
            raise InvalidRequestError(
                f"'{text}' names no line of a log: expected fence/chunk/line, as a stream gives it as the id of each "
                "line. Leave it away to begin with the first line.",
                param="after",
            )
        return cls(*map(int, found.groups()))


@dataclass(frozen=True)
class Line:
    """A line with its place; ``content`` is the JSON object that was stored."""

    position: Position
    content: str


def chunk_key(attempts: str, chunk: Chunk) -> str:
    """The key of a chunk; ``attempts`` is what ``attempts_prefix`` gives."""
    return f"{attempts}/{chunk.fence}/logs/{chunk.number:06d}.jsonl"


def list_chunks(store: ObjectStore, attempts: str, *, fence: int | None = None) -> list[Chunk]:
    """The chunks that are there, of all attempts or of one, in the order of the log. Raises StoreError."""
    within = f"{attempts}/" if fence is None else f"{attempts}/{fence}/logs/"
    found = (_CHUNK.search(key) for key in store.keys(within))
    return sorted(Chunk(int(match[1]), int(match[2])) for match in found if match)


def read_chunk(store: ObjectStore, attempts: str, chunk: Chunk, *, after_line: int = -1) -> list[Line] | None:
    """The lines of a chunk after one of them, or None where there is no such chunk (yet). Raises StoreError."""
    try:
        content = b"".join(store.open(chunk_key(attempts, chunk)))
    except ObjectMissingError:
        return None
    lines = content.decode().splitlines()
    # Escaped JSON has no line break of its own, so line feeds are all that splitlines finds.
    return [Line(Position(*chunk, number), line) for number, line in enumerate(lines) if number > after_line]


def read_lines(store: ObjectStore, attempts: str, chunks: Sequence[Chunk]) -> Iterator[Line]:
    """Every line of the chunks, in order. Raises StoreError."""
    for chunk in chunks:
        yield from read_chunk(store, attempts, chunk) or ()


def read_tail(store: ObjectStore, attempts: str, chunks: Sequence[Chunk], count: int) -> list[Line]:
    """The last ``count`` lines of the chunks, read from the end. Raises StoreError."""
    found: list[Line] = []
    for chunk in reversed(chunks):
        if len(found) >= count:
            break
        found = (read_chunk(store, attempts, chunk) or []) + found
    return found[-count:]


def encode_line(at: datetime, level: str, logger: str, message: str, fence: int) -> bytes:
    """A line as it is stored; ``at`` is in UTC."""
    when = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"at": when, "level": level, "logger": logger, "message": message, "fence": fence}
    return json.dumps(line).encode() + b"\n"


class Swept(NamedTuple):
    """The attempt up to which the logs of old attempts are removed: when it ended, and its id."""

    ended_at: datetime
    attempt_id: uuid.UUID


def sweep(engine: Engine, store: ObjectStore, *, kept: timedelta, after: Swept | None) -> tuple[int, Swept | None]:
    """Remove the logs of the next attempts that ended more than ``kept`` ago; return how many objects, and how far.

    Nothing in the database says that a log is gone, so whoever sweeps remembers how far it is and passes it as
    ``after``. One that has just started, None, looks at what came of age within SWEEP_WINDOW.

    Raises:
        StoreError, UnavailableError: nothing is lost, sweep again from the same place.
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
