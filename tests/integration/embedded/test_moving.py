"""The move of an embedded zhub: every row of every table, every object, also where it is broken off and begun again."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from tenant_rows import fill_tables, make_tenant

from zhub.cli import migrate_operations
from zhub.database.logins import grant_groups
from zhub.database.migrate import upgrade
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.data_dir import locked, open_data_dir
from zhub.embedded.moving import NOT_MOVED, move_tables
from zhub.embedded.postgres import Urls, create_roles, postgres_alone, prepare_cluster
from zhub.errors import ConflictError, EmbeddedError
from zhub.models import Base, Job, JobEvent
from zhub.storage.directory import DirectoryStore

TABLES = [table.name for table in Base.metadata.sorted_tables if table.name not in NOT_MOVED]


@pytest.fixture
def target(make_database: Callable[..., Urls], drop_database: Callable[[Urls], None]) -> Iterator[Urls]:
    urls = make_database()
    yield urls
    drop_database(urls)


@pytest.fixture
def filled(database: Urls, system_engine: Engine) -> Urls:
    """A database with rows of two tenants in every table."""
    fill(system_engine)
    return database


def fill(engine: Engine) -> None:
    with system_session(engine) as session:
        for organization in ("acme", "globex"):
            fill_tables(session, make_tenant(session, organization))


def content(engine: Engine, table: str) -> list[Any]:
    """Every row of a table, but for the numbers of transactions."""
    with system_session(engine) as session:
        rows = session.scalars(text(f"SELECT to_jsonb(t) - 'xid' FROM {table} t ORDER BY to_jsonb(t)::text")).all()
    return list(rows)


def test_every_row_of_every_table_is_there(filled: Urls, target: Urls, open_engine: Callable[[str], Engine]) -> None:
    moved = {table.name: table for table in move_tables(filled.system, target.owner)}
    source, there = open_engine(filled.system), open_engine(target.system)
    assert list(moved) == TABLES
    for name in TABLES:
        rows = content(source, name)
        assert (moved[name].rows, moved[name].sent) == (len(rows), len(rows) > 0), name
        assert content(there, name) == rows, name
    assert sum(table.rows > 0 for table in moved.values()) > 30, "the tables must have rows"


def test_what_comes_later_is_read_after_what_was_moved(
    filled: Urls, target: Urls, open_engine: Callable[[str], Engine]
) -> None:
    list(move_tables(filled.system, target.owner))
    with system_session(open_engine(target.system)) as session:
        moved = list(session.scalars(select(JobEvent)))
        job = session.scalars(select(Job)).first()
        assert job is not None
        later = JobEvent(org_id=job.org_id, job_id=job.id, message="m")
        session.add(later)
        session.flush()
        session.refresh(later)
        assert later.position > max(event.position for event in moved)
        oldest = session.scalar(text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"))
        assert oldest is not None and all(event.xid < oldest for event in moved), "no reader waits for another database"


def test_begun_again_it_goes_on_and_sends_nothing_twice(filled: Urls, target: Urls) -> None:
    broken_off = move_tables(filled.system, target.owner)
    before = [next(broken_off).name for _ in range(10)]
    broken_off.close()
    again = list(move_tables(filled.system, target.owner))
    sent = [table.name for table in again if table.sent]
    assert sent and not set(sent) & set(before)
    assert not any(table.sent for table in move_tables(filled.system, target.owner))


def test_the_tables_are_fenced_again(filled: Urls, target: Urls, open_engine: Callable[[str], Engine]) -> None:
    fences = "SELECT relname FROM pg_class WHERE relforcerowsecurity ORDER BY relname"
    with open_engine(target.owner).connect() as connection:
        before = connection.scalars(text(fences)).all()
        list(move_tables(filled.system, target.owner))
        assert connection.scalars(text(fences)).all() == before and len(before) > 30


def test_a_target_with_rows_of_another_zhub_is_refused(
    filled: Urls, target: Urls, open_engine: Callable[[str], Engine]
) -> None:
    with system_session(open_engine(target.system)) as session:
        make_tenant(session, "another")
    with pytest.raises(ConflictError, match="table 'organizations' of the target has 1 rows that are not the 3"):
        list(move_tables(filled.system, target.owner))


def test_a_whole_zhub_moves_by_one_command(
    tmp_path: Path, target: Urls, open_engine: Callable[[str], Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    prepare_cluster(data_dir.postgres)
    with postgres_alone(data_dir.postgres, data_dir.logs / "postgres.log") as cluster:
        create_roles(cluster)
        upgrade(cluster.urls().owner)
        grant_groups(cluster.urls().admin)
        engine = make_engine(cluster.urls().system)
        fill(engine)
        with system_session(engine) as session:
            # Those of `fill_tables` name files that there never were.
            session.execute(text("UPDATE dataset_versions SET deleted_at = now()"))
            session.execute(text("UPDATE expert_versions SET deleted_at = now()"))
        engine.dispose()
    DirectoryStore(data_dir.objects).put("t/x/y", io.BytesIO(b"kept"))
    store = DirectoryStore(tmp_path / "store")
    with locked(data_dir, port=1), pytest.raises(EmbeddedError, match="in use"):
        migrate_operations.move(data_dir.path, target.owner, store.root.as_uri())
    for told in ("sent", "there already"):
        migrate_operations.move(data_dir.path, target.owner, store.root.as_uri())
        shown = capsys.readouterr()
        (organizations,) = [line for line in shown.out.splitlines() if line.startswith("organizations")]
        assert organizations.split(maxsplit=2)[1:] == ["3", told]
        assert "0 are lost" in shown.err and "secrets.json" in shown.err
    assert b"".join(store.open("t/x/y")) == b"kept"
    with system_session(open_engine(target.system)) as session:
        assert session.scalar(text("SELECT count(*) FROM organizations")) == 3
