"""Bring a database to this release's revision, one migrator at a time, without waiting for ever.

The lock is a session-level advisory lock: ``CREATE INDEX CONCURRENTLY`` leaves the transaction, so a
transaction-level lock would be lost half-way. A database that is already there is left without taking it.
"""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

import zhub
from zhub.errors import SchemaVersionError, UnavailableError

ADVISORY_LOCK = 0x7A687562  # "zhub"


def upgrade(owner_url: str) -> str:
    """Apply every missing migration as the database's owner; return the revision reached.

    Raises:
        SchemaVersionError: the database is ahead of this release.
    """
    engine = create_engine(
        owner_url,
        connect_args={
            "connect_timeout": 5,
            "options": "-c lock_timeout=5s -c statement_timeout=10min -c application_name=zhub-migrate",
        },
    )
    try:
        with engine.connect() as connection:
            head = head_revision()
            if current_revision(connection) == head:
                return head
            connection.rollback()
            # Waiting for another migrator is not a lock conflict: it may take as long as a migration does.
            connection.execute(text("SET lock_timeout = '10min'"))
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            connection.execute(text("SET lock_timeout = '5s'"))
            connection.commit()
            try:
                check_not_ahead(connection)
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
                connection.commit()
            return head
    finally:
        engine.dispose()


def check_at_head(engine: Engine) -> None:
    """Raise SchemaVersionError unless the database is at this release's revision, UnavailableError if it is away."""
    try:
        with engine.connect() as connection:
            found = current_revision(connection)
    except OperationalError as exc:
        raise UnavailableError(f"the database does not answer: {exc.orig}") from exc
    if found != head_revision():
        raise SchemaVersionError(found, head_revision())


def check_not_ahead(connection: Connection) -> None:
    found = current_revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaVersionError(found, head_revision())
    connection.rollback()


def current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def head_revision() -> str:
    """The revision of this release, which reads and compiles every migration to know it."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None
    return head


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()))
    return config


def migrations_directory() -> Path:
    """``migrations/`` of the checkout, or its copy inside an installed wheel."""
    package = Path(zhub.__file__).parent
    packaged = package / "_migrations"
    return packaged if packaged.exists() else package.parents[1] / "migrations"
