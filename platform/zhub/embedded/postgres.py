"""A PostgreSQL server of our own: reachable only through a unix socket that nobody else can enter.

Authentication is the mode of the socket's directory (0700), so the server trusts whoever gets in. PostgreSQL
refuses to run as root; then the server, its files and its socket belong to an unprivileged user, and root
passes the directory's mode by being root.
"""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from zhub.database.logins import ADMIN, API_LOGIN, OWNER, SYSTEM_LOGIN
from zhub.embedded.binaries import find_postgres, postgres_major
from zhub.embedded.processes import ServerUser, spawn
from zhub.errors import EmbeddedError

DATABASE = "zhub"

SOCKET_NAME = ".s.PGSQL.5432"
MAX_SOCKET_PATH = 90  # sockaddr_un holds 104 bytes on macOS, 108 on Linux; PostgreSQL adds ".lock" to the name
NOBODY = 65534


@dataclass(frozen=True)
class Urls:
    """One URL for each role; the login decides what is allowed."""

    admin: str
    """Superuser: roles and databases, nothing else."""
    owner: str
    """Owns the database and migrates it."""
    api: str
    system: str


@dataclass(frozen=True)
class Cluster:
    """A database cluster that ``initdb`` has made, whether its server runs or not."""

    bin_dir: Path
    files: Path
    socket_dir: Path
    user: ServerUser | None
    home_fd: int | None = None
    """A descriptor of the directory above ``files``, if the user cannot open its path: see ``_open_home``."""

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """What the server must inherit for ``argv`` to be true."""
        return () if self.home_fd is None else (self.home_fd,)

    def url(self, role: str, database: str) -> str:
        return _url(self.socket_dir, role, database)

    def urls(self, database: str = DATABASE) -> Urls:
        return Urls(*(self.url(role, database) for role in (ADMIN, OWNER, API_LOGIN, SYSTEM_LOGIN)))

    def argv(self) -> list[str]:
        """The server's command line, for daily work: every commit is on disk before it is answered."""
        return [
            str(self.bin_dir / "postgres"),
            *("-D", str(_path_for_server(self.files, self.home_fd)), "-k", str(self.socket_dir)),
            *("-c", "listen_addresses="),
            *("-c", "unix_socket_permissions=0700"),
            *("-c", "max_connections=100"),
            *("-c", "shared_buffers=64MB"),
        ]

    def throwaway_argv(self) -> list[str]:
        """The same server without durability, for tests: the files are worthless after a crash."""
        fast = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", "max_connections=200")
        return [*self.argv(), *(part for setting in fast for part in ("-c", setting))]

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url(ADMIN, "postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def server_user() -> ServerUser | None:
    """None for a normal user; as root the user ``postgres``, or nobody where there is none."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        return ServerUser(NOBODY, NOBODY)
    return ServerUser(entry.pw_uid, entry.pw_gid)


def prepare_cluster(home: Path) -> Cluster:
    """Make the cluster under ``home`` with ``initdb``, unless it is there; remove what a dead server left.

    ``home``, an absolute path, is created and owned by the server's user. Nothing of this cluster may run. If the
    cluster has a ``home_fd``, that stays open, because this process may start the server again at any time.

    Raises:
        EmbeddedError: no PostgreSQL, one of another major version, or the server's user cannot get to the files.
    """
    user = server_user()
    files = home / "data"
    installed = find_postgres(_major_of(files))
    _own(home, user)
    home_fd = _open_home(home, user)
    socket_dir = home if home_fd is None and _fits(home) else short_dir(home, user)
    # A program finds its libraries and its share directory by its real path, so the descriptor does not help it.
    bin_dir = _reachable_programs(home if home_fd is None else socket_dir, installed, user)
    cluster = Cluster(bin_dir, files, socket_dir, user, home_fd)
    if not (files / "PG_VERSION").is_file():
        _initdb(cluster, postgres_major(installed) or 0)
    clear_sockets(socket_dir)
    _clear_pid_file(files)
    return cluster


def running_system_url(home: Path) -> str | None:
    """The URL of the scheduler's and the agent's login at the server of ``home`` that runs now, or None."""
    for socket_dir in (home, short_dir_name(home)):
        with suppress(OSError):  # another user's directory
            if (socket_dir / SOCKET_NAME).exists():
                return _url(socket_dir, SYSTEM_LOGIN, DATABASE)
    return None


def _url(socket_dir: Path, role: str, database: str) -> str:
    return f"postgresql://{role}@/{database}?host={quote(str(socket_dir))}"


def clear_sockets(socket_dir: Path) -> None:
    """Remove the socket of a server that was killed. Nothing may listen there any more."""
    for leftover in (socket_dir / SOCKET_NAME, socket_dir / f"{SOCKET_NAME}.lock"):
        leftover.unlink(missing_ok=True)


def create_roles(cluster: Cluster) -> None:
    """Make the logins and the database, or bring them back to what they should be. Safe to repeat."""
    with psycopg.connect(cluster.url(ADMIN, "postgres"), autocommit=True) as connection:
        present = {str(name) for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for login in (OWNER, API_LOGIN, SYSTEM_LOGIN):
            verb = sql.SQL("ALTER" if login in present else "CREATE")
            # The owner's migrations make the group roles; no login may pass row-level security by being one.
            may_create = sql.SQL("CREATEROLE" if login == OWNER else "NOCREATEROLE")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB {}").format(
                    verb, sql.Identifier(login), may_create
                )
            )
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(OWNER))
            )


@contextmanager
def temporary_postgres(*, durable: bool = False) -> Iterator[Cluster]:
    """A running server with the roles and the database ``zhub``, gone afterwards.

    In memory where possible and not durable, or, as in daily work, on disk and durable. Call it from the main thread:
    on Linux the server dies with the thread that started it.
    """
    memory = Path("/dev/shm")
    in_memory = not durable and os.access(memory, os.W_OK)
    home = Path(tempfile.mkdtemp(prefix="zhub-pg-", dir=memory if in_memory else None))
    try:
        cluster = prepare_cluster(home)
        argv = cluster.argv() if durable else cluster.throwaway_argv()
        with _running(cluster, argv, home / "server.log", stop=signal.SIGQUIT):
            create_roles(cluster)
            yield cluster
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def postgres_alone(home: Path, log: Path) -> Iterator[Cluster]:
    """The server of a stack that does not run, without the rest of it. As ``temporary_postgres``, and durable.

    Raises:
        EmbeddedError: there is no database, or it does not start.
    """
    if not (home / "data" / "PG_VERSION").is_file():
        raise EmbeddedError(f"{home}: no database there. Name the data directory of a zhub with --data-dir.")
    cluster = prepare_cluster(home)
    with _running(cluster, cluster.argv(), log, stop=signal.SIGINT):
        yield cluster


@contextmanager
def _running(cluster: Cluster, argv: list[str], log: Path, *, stop: signal.Signals) -> Iterator[None]:
    server = spawn(
        argv, env=server_env(), log=log, user=cluster.user, pass_fds=cluster.pass_fds, death_signal=signal.SIGQUIT
    )
    try:
        _wait_until_it_answers(cluster, server, log, timeout_s=60.0)
        yield
    finally:
        server.send_signal(stop)
        server.wait()
        if cluster.socket_dir != cluster.files.parent:
            shutil.rmtree(cluster.socket_dir, ignore_errors=True)


def server_env() -> dict[str, str]:
    """Our environment without what would steer libpq, and in a locale that exists everywhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def short_dir(home: Path, user: ServerUser | None = None) -> Path:
    """A private directory under /tmp named after ``home``, for sockets, whose paths must be short, and the like.

    Raises:
        EmbeddedError: somebody else made it first.
    """
    path = short_dir_name(home)
    _own(path, user)
    return path


def short_dir_name(home: Path) -> Path:
    return Path("/tmp") / f"zhub-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"


def _own(path: Path, user: ServerUser | None) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    allowed = {os.geteuid(), user.uid if user else os.geteuid()}
    if path.is_symlink() or status.st_uid not in allowed:
        raise EmbeddedError(f"{path}: expected a directory of user {os.geteuid()}, found one of user {status.st_uid}.")
    if user:
        os.chown(path, user.uid, user.gid)
    path.chmod(0o700)


def _open_home(home: Path, user: ServerUser | None) -> int | None:
    """A descriptor of ``home`` for a user who may not search a directory above it; None where the path is enough.

    Root's home and the directories of ``mktemp -d`` are closed to others, and their modes are not ours to change. But
    ``home`` belongs to the user, and Linux checks the permission to search a directory only where a path leads through
    it: ``/proc/self/fd/N`` leads straight to what root has opened, and gives access to nothing above or beside it. All
    processes of the server inherit the descriptor and use the same path; other processes (root's) use the real one.
    """
    if user is None or _may_enter(home, user):
        return None
    home_fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    if not _may_enter(Path(f"/proc/self/fd/{home_fd}"), user, pass_fds=(home_fd,)):
        os.close(home_fd)
        raise EmbeddedError(
            f"{home}: PostgreSQL does not run as root, and user {user.uid} cannot enter this path. Choose a data "
            "directory that other users may enter (/var/lib/zhub, say), or start zhub as a normal user."
        )
    return home_fd


def _path_for_server(path: Path, home_fd: int | None) -> Path:
    """A path in ``home`` as the server's user can open it."""
    return path if home_fd is None else Path(f"/proc/self/fd/{home_fd}") / path.name


def _reachable_programs(copy_to: Path, bin_dir: Path, user: ServerUser | None) -> Path:
    """``bin_dir``, or a copy below ``copy_to`` if the user cannot open it: root's Python is often in /root."""
    if user is None or _may_enter(bin_dir / "postgres", user):
        return bin_dir
    install, package = bin_dir.parent, bin_dir.parent.parent
    copied = copy_to / "programs"
    shutil.rmtree(copied, ignore_errors=True)
    # The programs look for their libraries beside the package, as pip has laid it out.
    for source in (install, *package.parent.glob(f"{package.name}.libs")):
        shutil.copytree(source, copied / source.relative_to(package.parent), symlinks=True)
    # pip under a umask of 077 makes files that only root can read.
    for path in (copied, *copied.rglob("*")):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    copied_bin_dir = copied / bin_dir.relative_to(package.parent)
    if not _may_enter(copied_bin_dir / "postgres", user):
        raise EmbeddedError(f"{bin_dir}: user {user.uid}, who runs PostgreSQL for root, cannot enter this path.")
    return copied_bin_dir


def _may_enter(path: Path, user: ServerUser, *, pass_fds: tuple[int, ...] = ()) -> bool:
    tested = subprocess.run(
        ["test", "-x", str(path)], user=user.uid, group=user.gid, extra_groups=[], pass_fds=pass_fds
    )
    return tested.returncode == 0


def _initdb(cluster: Cluster, major: int) -> None:
    files, user = cluster.files, cluster.user
    # Made under another name, so that half of a cluster is never taken for one.
    unfinished = files.with_name(f"{files.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    # From 17 on PostgreSQL brings Unicode's rules itself; before, C.UTF-8 is the locale nearest to them.
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    made = subprocess.run(
        [
            str(cluster.bin_dir / "initdb"),
            *("-D", str(_path_for_server(unfinished, cluster.home_fd)), "-U", ADMIN, "-E", "UTF8"),
            *("--auth-local=trust", "--auth-host=reject", "--no-instructions"),
            *(builtin if major >= 17 else ["--locale=C.UTF-8"]),
        ],
        env=server_env(),
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
        cwd="/" if user else None,  # it returns to its working directory, which may be closed to this user
        pass_fds=cluster.pass_fds,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise EmbeddedError(f"{files}: initdb failed: {(made.stderr or made.stdout).strip()}")
    unfinished.rename(files)


def _clear_pid_file(files: Path) -> None:
    """Remove ``postmaster.pid`` if the pid in it now belongs to somebody else, as it may after a reboot.

    PostgreSQL removes the file itself if that process is gone, and refuses to start if it lives.
    """
    pid_file = files / "postmaster.pid"
    try:
        named = psutil.Process(int(pid_file.read_text().split("\n", 1)[0])).name()
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    if named != "postgres":
        pid_file.unlink()


def _major_of(files: Path) -> int | None:
    version = files / "PG_VERSION"
    return int(version.read_text().split(".")[0]) if version.is_file() else None


def _fits(socket_dir: Path) -> bool:
    return len(os.fsencode(socket_dir / SOCKET_NAME)) <= MAX_SOCKET_PATH


def _wait_until_it_answers(cluster: Cluster, server: "subprocess.Popen[bytes]", log: Path, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not cluster.answers():
        if server.poll() is not None or time.monotonic() > deadline:
            raise EmbeddedError(f"PostgreSQL did not start: {log.read_text(errors='replace').strip()[-2000:]}")
        time.sleep(0.02)
