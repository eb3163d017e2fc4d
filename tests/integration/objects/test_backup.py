"""A backup as the guide has it, and its restore: the database first, then the store, and every object is there."""

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, text
from tenant_rows import fill_tables, make_tenant

from zhub.database.sessions import system_session
from zhub.embedded.postgres import Cluster, Urls, server_env
from zhub.manifest import MANIFEST_FILE
from zhub.models import Base
from zhub.objects.verification import verify
from zhub.storage.directory import DirectoryStore


@pytest.fixture
def program(postgres: Cluster) -> Callable[..., None]:
    """Run one of PostgreSQL's programs on a database, as a login that row-level security does not hold for."""

    def run(name: str, urls: Urls, *arguments: str) -> None:
        path = postgres.bin_dir / name
        if not path.is_file():
            pytest.skip(f"{path} is not installed")
        about = conninfo_to_dict(urls.admin)
        where = ["-h", str(about["host"]), "-U", str(about["user"]), "-d", str(about["dbname"])]
        subprocess.run([str(path), *where, *arguments], check=True, env=server_env(), capture_output=True)

    return run


def content(engine: Engine) -> dict[str, list[Any]]:
    with system_session(engine) as session:
        return {
            name: list(session.scalars(text(f"SELECT to_jsonb(t) FROM {name} t ORDER BY to_jsonb(t)::text")))
            for name in Base.metadata.tables
        }


def test_what_was_lost_after_a_backup_is_there_after_its_restore(
    database: Urls, system_engine: Engine, store: DirectoryStore, tmp_path: Path, program: Callable[..., None],
    make_database: Callable[..., Urls], drop_database: Callable[[Urls], None], open_engine: Callable[[str], Engine],
    publish_version: Callable[..., str], make_base_model: Callable[..., Any],
) -> None:  # fmt: skip
    make_base_model()
    with system_session(system_engine) as session:
        fill_tables(session, make_tenant(session, "globex"))
        session.execute(text("UPDATE dataset_versions SET deleted_at = now()"))
        session.execute(text("UPDATE expert_versions SET deleted_at = now()"))
    publish_version()
    store.put("bases/tiny/basis.json", io.BytesIO(b"{}"))
    with system_session(system_engine) as session:
        (manifest,) = session.scalars(text("SELECT manifest FROM expert_versions WHERE deleted_at IS NULL"))
    for name, size in [(MANIFEST_FILE, 1), *((file["name"], file["size_bytes"]) for file in manifest["files"])]:
        store.put(f"k/{name}", io.BytesIO(b"x" * size))
    before = content(system_engine)

    program("pg_dump", database, "-Fc", "-f", str(tmp_path / "zhub.dump"))
    shutil.copytree(store.root, tmp_path / "backup")

    with system_session(system_engine) as session:
        session.execute(text("DELETE FROM feedback"))
    for key in list(store.keys("")):
        store.delete(key)
    assert content(system_engine) != before
    assert len(verify(system_engine, store, deep=False).lost) == 2 + len(manifest["files"])  # with manifest and basis

    restored = make_database(empty=True)
    try:
        program("pg_restore", restored, str(tmp_path / "zhub.dump"))
        engine = open_engine(restored.system)
        assert content(engine) == before
        assert verify(engine, DirectoryStore(tmp_path / "backup"), deep=False).lost == []
        engine.dispose()
    finally:
        drop_database(restored)
