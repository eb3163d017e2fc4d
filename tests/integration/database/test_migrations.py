"""Migrations: one line of them, up and down, alone and at the same time, ending at what the models say."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text

from zhub.database.migrate import alembic_config, check_at_head, current_revision, head_revision, upgrade
from zhub.embedded.postgres import Urls
from zhub.errors import SchemaVersionError
from zhub.models import Base
from zhub.process.config import Settings
from zhub_api.app import create_app

OpenEngine = Callable[[str], Engine]

REVISIONS = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()][::-1]


@pytest.fixture
def empty(make_database: Callable[..., Urls]) -> Urls:
    return make_database(empty=True)


def migrate(connection: Connection, revision: str) -> None:
    """Go to a revision, up or down, as the owner."""
    config = alembic_config()
    config.attributes["connection"] = connection
    known = [None, *REVISIONS]
    up = revision in known[known.index(current_revision(connection)) :]
    (command.upgrade if up else command.downgrade)(config, revision)
    connection.commit()


def tables(connection: Connection) -> set[str]:
    return set(connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")))


def constraints(connection: Connection) -> set[tuple[str, str, str]]:
    """Every constraint with its definition, as PostgreSQL writes it."""
    rows = connection.execute(
        text(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'"
        )
    )
    return {(row[0], row[1], row[2]) for row in rows}


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) == 1


def test_an_empty_database_comes_to_the_head(empty: Urls, open_engine: OpenEngine) -> None:
    assert upgrade(empty.owner) == head_revision() == REVISIONS[-1]
    check_at_head(open_engine(empty.owner))


def test_upgrading_again_changes_nothing(empty: Urls, open_engine: OpenEngine) -> None:
    upgrade(empty.owner)
    with open_engine(empty.owner).connect() as connection:
        before = constraints(connection)
    upgrade(empty.owner)
    with open_engine(empty.owner).connect() as connection:
        assert constraints(connection) == before


def test_every_step_goes_up_down_and_up_again(empty: Urls, open_engine: OpenEngine) -> None:
    with open_engine(empty.owner).connect() as connection:
        for below, revision in zip(["base", *REVISIONS], REVISIONS, strict=False):
            migrate(connection, revision)
            after_first = constraints(connection)
            migrate(connection, below)
            migrate(connection, revision)
            assert constraints(connection) == after_first


def test_going_all_the_way_down_leaves_no_table(empty: Urls, open_engine: OpenEngine) -> None:
    upgrade(empty.owner)
    with open_engine(empty.owner).connect() as connection:
        migrate(connection, "base")
        assert tables(connection) == {"alembic_version"}


def test_the_migrations_make_what_the_models_say(database: Urls, open_engine: OpenEngine) -> None:
    with open_engine(database.owner).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_make_the_constraints_that_the_models_say(
    database: Urls, empty: Urls, open_engine: OpenEngine
) -> None:
    # Alembic compares no CHECK constraint.
    with open_engine(empty.owner).begin() as connection:
        Base.metadata.create_all(connection)
        expected = constraints(connection)
    with open_engine(database.owner).connect() as connection:
        assert constraints(connection) == expected


@pytest.mark.parametrize("count", [2, 4])
def test_migrators_at_the_same_time_do_not_fail(empty: Urls, open_engine: OpenEngine, count: int) -> None:
    barrier = threading.Barrier(count)

    def run(_index: int) -> str:
        barrier.wait(timeout=10)
        return upgrade(empty.owner)

    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(run, range(count))) == [head_revision()] * count


def test_a_migrator_that_fails_lets_the_next_one_in(empty: Urls, open_engine: OpenEngine) -> None:
    with open_engine(empty.owner).begin() as connection:
        connection.execute(text("CREATE TABLE agents (id int)"))  # in the way of the first migration
    with pytest.raises(Exception, match="agents"):
        upgrade(empty.owner)
    with open_engine(empty.owner).begin() as connection:
        assert tables(connection) <= {"agents", "alembic_version"}
        connection.execute(text("DROP TABLE agents"))
    assert upgrade(empty.owner) == head_revision()


def test_a_database_behind_is_told_to_upgrade(empty: Urls, open_engine: OpenEngine) -> None:
    with pytest.raises(SchemaVersionError, match="is at revision none, .*: run `zhub db upgrade`"):
        check_at_head(open_engine(empty.api))


@pytest.fixture
def ahead(database: Urls) -> Urls:
    """A database that a later release has migrated."""
    engine = create_engine(database.owner)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    return database


def test_a_database_ahead_asks_for_the_newer_release(ahead: Urls, open_engine: OpenEngine) -> None:
    with pytest.raises(SchemaVersionError, match=r"is at revision 9999, .*: start the newer release"):
        check_at_head(open_engine(ahead.api))


def test_a_database_ahead_is_not_touched(ahead: Urls, open_engine: OpenEngine) -> None:
    with pytest.raises(SchemaVersionError, match="start the newer release"):
        upgrade(ahead.owner)
    with open_engine(ahead.owner).connect() as connection:
        assert current_revision(connection) == "9999"


def test_the_api_refuses_to_start_on_a_database_behind(empty: Urls, settings: Settings) -> None:
    with pytest.raises(SchemaVersionError):
        create_app(settings.model_copy(update={"database_url": empty.api}))


def test_the_api_refuses_to_start_on_a_database_ahead(ahead: Urls, settings: Settings) -> None:
    with pytest.raises(SchemaVersionError):
        create_app(settings.model_copy(update={"database_url": ahead.api}))
