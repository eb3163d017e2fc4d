"""PostgreSQL whose clock and random ids belong to a test, and engines that harm their own transactions.

A schema that comes before ``pg_catalog`` on the search path has a ``now()`` of its own, and every column default is
pointed at it; its time is a setting that each transaction begins with. So the statements that run are the product's,
word for word, and one that went past the virtual clock would be noticed: its time would be years too early.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import PoolProxiedConnection

from zhub.database.sessions import make_engine
from zhub.embedded.postgres import Urls
from zhub.models import Base

EPOCH = datetime(2040, 3, 5, 6, 7, 8, tzinfo=UTC)
MAX_STATEMENTS_BEFORE_A_CUT = 6
Fault = Literal["before", "middle", "after"]
"""A transaction whose connection breaks before its first statement, after some, or once it is committed."""

_INSTALL = """
    CREATE SCHEMA simulated;
    CREATE SEQUENCE simulated.ids;
    CREATE FUNCTION simulated.now() RETURNS timestamptz LANGUAGE sql STABLE
        AS $$ SELECT current_setting('simulated.now')::timestamptz $$;
    CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
        AS $$ SELECT current_setting('simulated.now')::timestamptz $$;
    CREATE FUNCTION simulated.gen_random_uuid() RETURNS uuid LANGUAGE sql VOLATILE
        AS $$ SELECT md5(nextval('simulated.ids')::text)::uuid $$;
    GRANT USAGE ON SCHEMA simulated TO PUBLIC;
    GRANT USAGE ON SEQUENCE simulated.ids TO PUBLIC;
"""
# Numbers of transactions and of connections are the server's own, and say nothing about what was done.
_NOT_OURS = {"xid"}


class SimulatedDatabase:
    """A migrated database on virtual time, emptied for each seed."""

    def __init__(self, urls: Urls) -> None:
        self.urls = urls
        self._engines: dict[str, tuple[Engine, list[Moments]]] = {}
        self._tables = sorted(table.name for table in Base.metadata.sorted_tables)
        name = sql.Identifier(str(conninfo_to_dict(urls.admin)["dbname"]))
        with psycopg.connect(urls.admin, autocommit=True) as connection:
            connection.execute(_INSTALL)
            for table, column in connection.execute(
                "SELECT table_name, column_name FROM information_schema.columns WHERE column_default = 'now()'"
            ).fetchall():
                statement = "ALTER TABLE {} ALTER COLUMN {} SET DEFAULT simulated.now()"
                connection.execute(sql.SQL(statement).format(sql.Identifier(table), sql.Identifier(column)))
            # The order of rows must not depend on how often a connection has run a statement before.
            for setting in ("search_path = simulated, pg_catalog, public", "plan_cache_mode = force_custom_plan"):
                connection.execute(sql.SQL("ALTER DATABASE {} SET ").format(name) + sql.SQL(setting))
        self._connection = psycopg.connect(urls.admin, autocommit=True)
        # The audit log, which is emptied here between histories with all the rest.
        self._connection.execute("ALTER TABLE audit_events DISABLE TRIGGER untruncated")

    def close(self) -> None:
        self._connection.close()
        for engine, _ in self._engines.values():
            engine.dispose()

    def empty(self) -> None:
        """No rows, and sequences at their beginning."""
        tables = sql.SQL(", ").join(map(sql.Identifier, self._tables))
        self._connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(tables))
        self._connection.execute("ALTER SEQUENCE simulated.ids RESTART")

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """What is committed, past every fence."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement.encode(), values).fetchall()

    def contents(self) -> str:
        """A digest of every row."""
        found = hashlib.sha256()
        for table in self._tables:
            lines = [
                repr(sorted((name, value) for name, value in row.items() if name not in _NOT_OURS))
                for row in self.rows(f'SELECT * FROM "{table}"')
            ]
            found.update("\n".join([table, *sorted(lines)]).encode())
        return found.hexdigest()

    def outside(self, begin: datetime, end: datetime) -> list[str]:
        """Columns with a time at which this seed did not live: their statement went past the virtual clock."""
        found = []
        for table in Base.metadata.sorted_tables:
            for column in table.columns:
                if column.name in ("created_at", "finished_at", "ended_at", "admitted_at", "seen_at", "moved_at"):
                    statement = f'SELECT 1 FROM "{table.name}" WHERE NOT "{column.name}" BETWEEN %s AND %s LIMIT 1'
                    if self.rows(statement, begin, end):
                        found.append(f"{table.name}.{column.name}")
        return found

    def engine(self, process: str, url: str, moments: "Moments") -> Engine:
        """The engine of a process, of the product's making; the same one in all seeds, because making one costs."""
        if process not in self._engines:
            self._engines[process] = self._open(url)
        engine, told = self._engines[process]
        told.clear()
        told.append(moments)
        return engine

    def _open(self, url: str) -> tuple[Engine, list["Moments"]]:
        engine = make_engine(url, pool_size=2)
        told: list[Moments] = []

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            now, fault, statements = told[0].begun()
            proxied = connection.connection
            proxied.info["fault"], proxied.info["statements"] = fault, statements
            if fault == "before":
                _cut(proxied)
            else:
                # Not by way of SQLAlchemy: to it, the transaction has not begun yet.
                _driver(proxied).execute("SELECT set_config('simulated.now', %s, true)", [now.isoformat()])

        @event.listens_for(engine, "before_cursor_execute")
        def _count(connection: Connection, *_arguments: Any) -> None:
            proxied = connection.connection
            if proxied.info.get("fault") == "middle":
                proxied.info["statements"] -= 1
                if proxied.info["statements"] <= 0:
                    _cut(proxied)

        def commit(proxied: PoolProxiedConnection) -> None:
            fault = proxied.info.pop("fault", None)
            if fault == "middle":
                _cut(proxied)
            proxied.commit()
            if fault == "after":
                _cut(proxied)
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            told[0].committed()

        def stay(_connection: object, _level: object) -> None:
            """A statement that commits by itself is a transaction of one statement, with a time and a fault as well."""

        engine.dialect.set_isolation_level = stay  # type: ignore[method-assign,assignment]
        # There is an event before a commit, and none after it.
        engine.dialect.do_commit = commit  # type: ignore[method-assign,assignment]
        return engine, told


class Moments(Protocol):
    """What an engine tells of its transactions."""

    def begun(self) -> tuple[datetime, Fault | None, int]:
        """One begins: its time, the fault that it meets, and after how many statements if that is in the middle."""

    def committed(self) -> None:
        """It is committed, and its process knows."""


def _driver(proxied: PoolProxiedConnection) -> psycopg.Connection[Any]:
    found = proxied.driver_connection
    assert isinstance(found, psycopg.Connection)
    return found


def _cut(proxied: PoolProxiedConnection) -> None:
    proxied.info.pop("fault", None)
    connection = _driver(proxied)
    # The server would notice the end of the connection a moment later, at a time that is nobody's.
    connection.rollback()
    connection.close()


def at(now_us: int) -> datetime:
    """The time so many microseconds after the beginning of every simulation."""
    return EPOCH + timedelta(microseconds=now_us)
