"""The move of an embedded zhub to a production database and store: objects first, then table by table, and checked.

It can be broken off and begun again at any time: an object that is there is not sent again, a table that is there is
compared. Nothing of the source is changed.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import psycopg
from psycopg import sql
from sqlalchemy import Table

from zhub.errors import ConflictError, ObjectMissingError, StoreError
from zhub.models import Base
from zhub.storage.object_store import ObjectStore

NOT_MOVED = ("agents", "leaders", "object_reservations")  # what processes that run now say of themselves
# A transaction's number means nothing in another database: events that were read up to the oldest open one would wait
# for its counter to come by. All are of the oldest transaction there, in the order of their positions.
CONSTANTS = {("job_events", "xid"): "1"}


@dataclass(frozen=True)
class MovedTable:
    """A table: how many rows it has in both databases, and whether they were sent now or there before."""

    name: str
    rows: int
    sent: bool


def move_objects(
    source: ObjectStore, target: ObjectStore, on_object: Callable[[int, int, bool], None]
) -> tuple[int, int]:
    """Send what the target lacks; return how many objects the source has, and how many bytes.

    ``on_object``: called with how many there were so far, their bytes, and whether the last was sent.

    Raises:
        StoreError: begin again.
    """
    count = total = 0
    for listed in source.listing(""):
        is_sent = _size(target, listed.key) != listed.size_bytes
        if is_sent:
            target.put(listed.key, cast(BinaryIO, _Reading(source.open(listed.key))))
            if (size_bytes := _size(target, listed.key)) != listed.size_bytes:
                raise StoreError(
                    f"{listed.key}: {listed.size_bytes:,} bytes were sent, {size_bytes} came", key=listed.key
                )
        count, total = count + 1, total + listed.size_bytes
        on_object(count, total, is_sent)
    return count, total


def _size(store: ObjectStore, key: str) -> int | None:
    try:
        return store.size(key)
    except ObjectMissingError:
        return None


def move_tables(source_url: str, target_url: str) -> Generator[MovedTable]:
    """Send the rows of every table, in the order in which they refer to each other, each table in one transaction.

    Args:
        source_url: a login that sees every row of the source.
        target_url: the owner of the target, which is at the same revision and empty but for what an earlier run sent.

    Raises:
        ConflictError: the target has other rows in a table.
    """
    with psycopg.connect(source_url) as source, psycopg.connect(target_url) as target:
        for connection in (source, target):
            connection.execute("SET timezone = 'UTC'")
            connection.commit()
        # One snapshot of the source for all tables.
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for table in Base.metadata.sorted_tables:
            if table.name not in NOT_MOVED:
                yield _move(source, target, table)


def _move(source: psycopg.Connection, target: psycopg.Connection, table: Table) -> MovedTable:
    expected = _fingerprint(source, table)
    with _unfenced(target, table):
        found = _fingerprint(target, table)
        if found != expected:
            if found[0]:
                raise ConflictError(
                    f"The table '{table.name}' of the target has {found[0]:,} rows that are not the {expected[0]:,} of "
                    "the source. Move to an empty database; if the source was used since the move began, to a new one."
                )
            _send(source, target, table)
            if (sent := _fingerprint(target, table)) != expected:
                raise ConflictError(f"The table '{table.name}' came to have {sent}, expected {expected}.")
            _go_on_counting(target, table)
    return MovedTable(table.name, expected[0], sent=found != expected)


@contextmanager
def _unfenced(target: psycopg.Connection, table: Table) -> Iterator[None]:
    """One transaction in which the owner sees and writes every row of the table, which nobody else does meanwhile."""
    name = sql.Identifier(table.name)
    with target.transaction():
        fenced = target.execute("SELECT relforcerowsecurity FROM pg_class WHERE oid = %s::regclass", [table.name])
        row = fenced.fetchone()
        is_fenced = row is not None and row[0]
        if is_fenced:
            target.execute(sql.SQL("ALTER TABLE {} NO FORCE ROW LEVEL SECURITY").format(name))
        yield
        if is_fenced:
            target.execute(sql.SQL("ALTER TABLE {} FORCE ROW LEVEL SECURITY").format(name))


def _send(source: psycopg.Connection, target: psycopg.Connection, table: Table) -> None:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    name = sql.Identifier(table.name)
    reading = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(_values(table), name)
    writing = sql.SQL("COPY {} ({}) FROM STDIN").format(name, columns)
    with source.cursor().copy(reading) as rows, target.cursor().copy(writing) as taken:
        for piece in rows:
            taken.write(piece)


def _values(table: Table) -> sql.Composed:
    """The columns as they are sent."""
    return sql.SQL(", ").join(
        sql.SQL(CONSTANTS[table.name, column.name])
        if (table.name, column.name) in CONSTANTS
        else sql.Identifier(column.name)
        for column in table.columns
    )


def _fingerprint(connection: psycopg.Connection, table: Table) -> tuple[int, int]:
    """How many rows there are, and a number made of all their values, whatever their order."""
    statement = sql.SQL(
        "SELECT count(*), coalesce(sum(('x' || left(md5(ROW({})::text), 15))::bit(60)::bigint::numeric), 0) FROM {}"
    )
    row = connection.execute(statement.format(_values(table), sql.Identifier(table.name))).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _go_on_counting(target: psycopg.Connection, table: Table) -> None:
    """Let columns that count by themselves go on after the last number."""
    for column in table.columns:
        if column.identity is not None:
            statement = sql.SQL("SELECT setval(pg_get_serial_sequence({}, {}), max({})) FROM {} HAVING count(*) > 0")
            names = (sql.Literal(table.name), sql.Literal(column.name))
            target.execute(statement.format(*names, sql.Identifier(column.name), sql.Identifier(table.name)))


class _Reading:
    """The pieces of an object as a file that is read once, from its beginning."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._rest += piece
        if size < 0:
            size = len(self._rest)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
