"""The supervisor of ``zhub up``: what it starts it keeps running, and what it stops is gone with all it started."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import Engine

from zhub.client.credentials import Credentials, read_credentials, write_credentials
from zhub.database.sessions import system_session
from zhub.embedded.__main__ import ORGANIZATION, PROJECT, first_start
from zhub.embedded.children import Plan, Programs, own_children, postgres_child, private_dir, valkey_child
from zhub.embedded.data_dir import DataDir, check_free_bytes, load_secrets, locked, open_data_dir
from zhub.embedded.postgres import Cluster, Urls, create_roles, prepare_cluster, short_dir_name
from zhub.embedded.processes import Child, Supervisor, end_recorded
from zhub.embedded.stack import Stack, StackAddresses
from zhub.errors import EmbeddedError
from zhub.tenancy import keys
from zhub.tenancy.bootstrap import ensure_project

# A child that starts a grandchild, which leaves its parent's session as Ray's processes do.
FAMILY = """
import subprocess, sys, time
nap = "import time, sys; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", nap, sys.argv[1]], start_new_session=True)
time.sleep(600)
"""

SUPERVISOR = """
import signal, sys, time
from pathlib import Path
from zhub.embedded.processes import Child, Supervisor
directory, mark, family = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
import os
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with Supervisor(logs=directory, record=directory / "processes.json", progress=print) as supervisor:
    for name in ("first", "second"):
        supervisor.add(Child(name, [sys.executable, "-c", family, mark], os.environ))
    while not stop:
        supervisor.tick()
        time.sleep(0.02)
"""

STACK = """
import json, os, sys
from pathlib import Path
import psycopg
from zhub.embedded.children import Programs
from zhub.embedded.stack import Stack

def migrate(urls):
    with psycopg.connect(urls.owner) as connection:
        for group in ("zhub_app", "zhub_system"):
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [group]).fetchone():
                connection.execute(f"CREATE ROLE {group} NOLOGIN")

def show(addresses):
    print(json.dumps({"api_url": addresses.api_url, **vars(addresses.database)}), flush=True)

programs = Programs(*([sys.executable, "-c", code] for code in sys.argv[3:6]))
stack = Stack(Path(sys.argv[1]), port=int(sys.argv[2]), prepare=migrate, num_cpus=1, programs=programs)
stack.run(show, lambda message: print(message, flush=True))
"""

API = """
import http.server, json, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({k: v for k, v in os.environ.items() if k.startswith(("ZHUB_", "RAY_"))}).encode())
http.server.HTTPServer((os.environ["ZHUB_HOST"], int(os.environ["ZHUB_PORT"])), Answer).serve_forever()
"""
SCHEDULER = "import time; time.sleep(600)"
AGENT = """
import os, pathlib, time
import ray
ray.init(address=os.environ["ZHUB_RAY_ADDRESS"], log_to_driver=False)
actor = ray.remote(num_cpus=0)(type("Actor", (), {"pid": lambda self: os.getpid()}))
kept = actor.options(name="kept", namespace="test", lifetime="detached").remote()
pathlib.Path(os.environ["ZHUB_READY_FILE"]).write_text(str(ray.get(kept.pid.remote())))
time.sleep(600)
"""


def _until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "timed out"
        time.sleep(0.02)


def _marked(mark: str) -> list[int]:
    """The living processes that have this word on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if mark in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    word = f"mark-{uuid.uuid4().hex}"
    yield word
    for pid in _marked(word):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(logs=tmp_path, record=tmp_path / "processes.json", progress=lambda _message: None) as it:
        yield it


@pytest.fixture
def supervising(tmp_path: Path, mark: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Another process that supervises two children with one grandchild each."""
    popen = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path), mark, FAMILY])
    _until(lambda: len(_marked(mark)) == 5)
    yield popen
    popen.kill()
    popen.wait()


def _python(name: str, code: str, *args: str) -> Child:
    return Child(name, [sys.executable, "-c", code, *args], os.environ)


def _tick_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    def met() -> bool:
        supervisor.tick()
        return condition()

    _until(met)


def test_a_crashed_child_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    code = "import sys, time; f = open(sys.argv[1], 'a+'); f.write('x'); f.flush(); time.sleep(600 * (f.tell() - 1))"
    supervisor.add(_python("crashing", code, str(starts)))
    _tick_until(supervisor, lambda: starts.exists() and starts.read_text() == "xx")


def test_a_child_that_keeps_crashing_stops_the_stack_with_the_end_of_its_log(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.add(_python("doomed", "for i in range(30): print('line', i)\nraise SystemExit(3)"))
    with pytest.raises(EmbeddedError, match="doomed ended with status 3, 5 times") as caught:
        _tick_until(supervisor, lambda: False)
    assert "  line 29" in str(caught.value) and "  line 10" in str(caught.value)
    assert "  line 9\n" not in str(caught.value)


def test_a_child_that_is_not_ready_in_time_stops_the_stack(supervisor: Supervisor) -> None:
    slow = _python("slow", "import time; print('still loading', flush=True); time.sleep(600)")
    supervisor.add(replace(slow, ready=lambda: False, ready_timeout_s=0.5))
    with pytest.raises(EmbeddedError, match=r"slow was not ready after 0\.5 s"):
        _tick_until(supervisor, lambda: False)


def test_a_child_waits_for_what_it_needs_and_is_restarted_with_it(supervisor: Supervisor, tmp_path: Path) -> None:
    base_pid, user_pid = tmp_path / "base", tmp_path / "user"
    write_pid = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    base = _python("base", write_pid, str(base_pid))
    supervisor.add(replace(_python("user", write_pid, str(user_pid)), needs="base"))
    supervisor.add(replace(base, before_start=lambda: base_pid.unlink(missing_ok=True), ready=lambda: _reads(base_pid)))
    supervisor.tick()
    supervisor.tick()
    assert not user_pid.exists()
    _tick_until(supervisor, lambda: _reads(user_pid))
    first_user = user_pid.read_text()
    os.kill(int(base_pid.read_text()), signal.SIGKILL)
    _tick_until(supervisor, lambda: user_pid.read_text() not in ("", first_user))


def _reads(path: Path) -> bool:
    return path.exists() and path.read_text() != ""


def test_a_program_that_does_not_exist_is_named(supervisor: Supervisor) -> None:
    supervisor.add(Child("missing", ["/no/such/program"], os.environ))
    with pytest.raises(EmbeddedError, match="missing cannot be started: /no/such/program"):
        supervisor.tick()


def test_the_log_of_the_run_before_is_kept(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "quiet.log").write_text("the run before")
    supervisor.add(_python("quiet", "import time; time.sleep(600)"))
    supervisor.tick()
    assert (tmp_path / "quiet.1.log").read_text() == "the run before"
    assert (tmp_path / "quiet.log").read_text() == ""


def test_a_child_that_ignores_the_stop_signal_is_killed(tmp_path: Path, mark: str) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); open(__import__('sys').argv[2], 'w'); time.sleep(600)"
    )
    with Supervisor(logs=tmp_path, record=tmp_path / "processes.json", progress=lambda _message: None) as supervisor:
        supervisor.add(replace(_python("stubborn", stubborn, mark, str(tmp_path / "up")), stop_grace_s=0.2))
        _tick_until(supervisor, (tmp_path / "up").exists)
    assert _marked(mark) == []


def test_sigterm_of_the_supervisor_leaves_nothing_behind(
    supervising: "subprocess.Popen[bytes]", tmp_path: Path, mark: str
) -> None:
    supervising.terminate()
    assert supervising.wait(30) == 0
    assert _marked(mark) == []
    assert not (tmp_path / "processes.json").exists()


def test_grandchildren_of_a_killed_child_are_ended_before_it_is_started_again(
    supervising: "subprocess.Popen[bytes]", mark: str
) -> None:
    child = psutil.Process(supervising.pid).children()[0]
    grandchild = child.children()[0]
    child.kill()
    _until_ended({grandchild})
    _until(lambda: len(_marked(mark)) == 5)


def test_children_die_with_a_killed_supervisor_and_the_next_one_ends_the_rest(
    supervising: "subprocess.Popen[bytes]", tmp_path: Path, mark: str
) -> None:
    record = tmp_path / "processes.json"
    _until(lambda: len(json.loads(record.read_text())) == 4, timeout_s=60)
    children = psutil.Process(supervising.pid).children()
    supervising.kill()
    supervising.wait()
    _until_ended(set(children))
    end_recorded(record)
    _until(lambda: _marked(mark) == [])


def test_a_recorded_pid_that_now_belongs_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        created = psutil.Process(bystander.pid).create_time()
        record.write_text(json.dumps([{"pid": bystander.pid, "create_time": created - 60, "name": "python"}]))
        assert end_recorded(record) == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_second_stack_on_the_same_directory_is_told_who_has_it(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    with locked(data_dir, port=8460), pytest.raises(EmbeddedError, match=f"process {os.getpid()}, on port 8460"):
        _stack(tmp_path / "data").run(lambda _addresses: None, lambda _message: None)


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"Port {port} of 127.0.0.1 cannot be used: .* --port"):
            _stack(tmp_path / "data", port=port).run(lambda _addresses: None, lambda _message: None)
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_file_in_place_of_the_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(EmbeddedError, match="data: expected a directory, found a file"):
        open_data_dir(tmp_path / "data")


def test_the_mode_of_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    open_data_dir(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_data_directory_that_cannot_be_written_is_refused() -> None:
    # Nobody writes to /proc, not even root, whom the mode of a directory does not stop.
    with pytest.raises(EmbeddedError, match="--data-dir"):
        open_data_dir(Path("/proc/zhub"))


def test_a_full_disk_is_refused_with_both_numbers(tmp_path: Path) -> None:
    check_free_bytes(tmp_path, 500_000_000)
    with pytest.raises(EmbeddedError, match="at least 500 MB free, found 499 MB"):
        check_free_bytes(tmp_path, 499_999_999)


def test_secrets_are_made_once_and_only_for_us(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    made = load_secrets(data_dir)
    assert load_secrets(data_dir) == made
    assert data_dir.secrets.stat().st_mode & 0o777 == 0o600


def test_secrets_that_cannot_be_read_are_never_replaced(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    data_dir.secrets.write_text("{")
    with pytest.raises(EmbeddedError, match="expected the secrets"):
        load_secrets(data_dir)
    assert data_dir.secrets.read_text() == "{"


def _stack(path: Path, *, port: int = 0) -> Stack:
    def prepare(_urls: Urls) -> None:
        raise AssertionError("the stack should not have come this far")

    return Stack(path, port=port, prepare=prepare)


def test_scheduler_and_agent_tell_their_metrics_at_ports_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZHUB_METRICS_PORT", "9464")
    data_dir = open_data_dir(tmp_path / "data")
    plan = Plan(data_dir, load_secrets(data_dir), "127.0.0.1", 0, 1, 0, 0, tmp_path)
    cluster = Cluster(bin_dir=tmp_path, files=tmp_path, socket_dir=tmp_path, user=None)
    _, scheduler, agent = own_children(plan, cluster, Programs(), has_valkey=False)
    assert (scheduler.env["ZHUB_METRICS_PORT"], agent.env["ZHUB_METRICS_PORT"]) == ("9464", "9465")


@pytest.fixture
def start_stack(tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts the real PostgreSQL, Valkey and Ray, with stand-ins for zhub's own programs."""
    argv = [sys.executable, "-c", STACK, str(tmp_path / "data"), str(_free_port()), API, SCHEDULER, AGENT]
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for stack in started:
        with stack:
            stack.terminate()


def test_the_real_servers_run_below_a_closed_directory_and_are_started_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # as root's home is, and what mktemp makes
    data_dir = open_data_dir(tmp_path / "data")
    cluster = prepare_cluster(data_dir.postgres)
    plan = Plan(data_dir, load_secrets(data_dir), "127.0.0.1", 0, 1, 0, 0, private_dir(data_dir))
    valkey = valkey_child(plan)
    children = [postgres_child(cluster), *([valkey] if valkey else [])]
    messages: list[str] = []
    others = set(psutil.Process().children())  # the server that other tests share is one of them
    with Supervisor(logs=data_dir.logs, record=data_dir.record, progress=messages.append) as supervisor:
        for child in children:
            supervisor.add(child)
        _tick_until(supervisor, lambda: all(supervisor.is_ready(child.name) for child in children))
        create_roles(cluster)
        with psycopg.connect(cluster.urls().admin) as admin:
            admin.execute("CREATE TABLE kept AS SELECT 7 AS i")
        next(it for it in set(psutil.Process().children()) - others if it.name() == "postgres").kill()
        _tick_until(supervisor, lambda: messages.count("postgres is ready.") == 2)
        with psycopg.connect(cluster.urls().admin) as admin:
            assert admin.execute("SELECT i FROM kept").fetchone() == (7,)
    shutil.rmtree(plan.private_dir)
    if cluster.socket_dir != data_dir.postgres:
        shutil.rmtree(cluster.socket_dir)


@pytest.mark.ray
def test_the_real_stack_starts_survives_a_crash_and_leaves_nothing(
    start_stack: Callable[[], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    data_dir = DataDir(tmp_path / "data")
    stack = start_stack()
    shown = _shown(stack)
    with psycopg.connect(shown["api"]) as connection:
        assert connection.execute("SELECT pg_has_role('zhub_app', 'member')").fetchone() == (True,)
    environ = _get_json(shown["api_url"])
    assert environ["ZHUB_DATABASE_URL"] == shown["api"]
    assert environ["ZHUB_STORE_URL"] == data_dir.objects.as_uri()
    assert "RAY_AUTH_TOKEN" not in environ

    _until(data_dir.agent_ready.exists, timeout_s=120)
    family = set(psutil.Process(stack.pid).children(recursive=True))
    assert int(data_dir.agent_ready.read_text()) in {process.pid for process in family}
    assert _listening(family) <= {"127.0.0.1", "::ffff:127.0.0.1"}

    postgres = next(it for it in psutil.Process(stack.pid).children() if it.name() == "postgres")
    postgres.kill()
    _until(lambda: _connects(shown["api"]) and not _lives(postgres))
    family |= set(psutil.Process(stack.pid).children(recursive=True))
    stack.terminate()
    assert stack.wait(60) == 0
    assert [process for process in family if _lives(process)] == []
    assert not data_dir.record.exists()
    assert not short_dir_name(data_dir.path).exists()
    assert not short_dir_name(data_dir.postgres).exists()


@pytest.mark.ray
def test_a_real_stack_that_is_interrupted_twice_or_killed_leaves_no_process_and_starts_again(
    start_stack: Callable[[], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    data_dir = DataDir(tmp_path / "data")
    interrupted = start_stack()
    _shown(interrupted)
    _until(data_dir.agent_ready.exists, timeout_s=120)
    family = set(psutil.Process(interrupted.pid).children(recursive=True))
    agent = next(it for it in psutil.Process(interrupted.pid).children() if AGENT in it.cmdline())
    agent.suspend()  # so that it does not follow the first signal, which would take its whole grace of 20 s
    interrupted.send_signal(signal.SIGINT)
    assert "Stopping.\n" in _output(interrupted)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(10) == 0
    assert [process for process in family if _lives(process)] == []

    data_dir.agent_ready.unlink()  # or else it is there until Ray is up, and says nothing
    killed = start_stack()
    assert _connects(_shown(killed)["owner"])
    _until(data_dir.agent_ready.exists, timeout_s=120)
    family = set(psutil.Process(killed.pid).children(recursive=True))
    killed.kill()
    _until_ended(family)
    assert _connects(_shown(start_stack())["owner"])


def _shown(stack: "subprocess.Popen[str]") -> dict[str, str]:
    """What the stack says of itself when it is ready."""
    return dict(json.loads(next(line for line in _output(stack) if line.startswith("{"))))


def _output(stack: "subprocess.Popen[str]") -> Iterator[str]:
    assert stack.stdout is not None
    return iter(stack.stdout.readline, "")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _until_ended(processes: set[psutil.Process]) -> None:
    _until(lambda: not any(_lives(process) for process in processes))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _get_json(url: str) -> dict[str, str]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        environ: dict[str, str] = json.loads(answer.read())
    return environ


def _connects(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _listening(processes: set[psutil.Process]) -> set[str]:
    """The addresses on which these processes listen for TCP."""
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_a_key_of_a_release_with_fewer_scopes_is_replaced_by_one_that_may_do_everything(
    database: Urls, system_engine: Engine, api_engine: Engine, tmp_path: Path
) -> None:
    addresses = StackAddresses("http://127.0.0.1:1", "", database, tmp_path, lambda: True)
    secret_key = load_secrets(DataDir(tmp_path)).secret_key

    def scopes_of(api_key: str) -> frozenset[str]:
        return keys.authenticate(api_engine, api_key, secret_key=secret_key).scopes

    with system_session(system_engine) as session:
        project = ensure_project(session, ORGANIZATION, PROJECT)
        _row, old = keys.create_api_key(session, project, "old", scopes=("chat",), secret_key=secret_key)
    write_credentials(tmp_path, Credentials(addresses.api_url, old))
    new = first_start(addresses)
    assert scopes_of(new.api_key) == set(keys.SCOPES) and scopes_of(old) == {"chat"}
    assert read_credentials(tmp_path) == first_start(addresses) == new
