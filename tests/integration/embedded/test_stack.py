"""The stack of ``zhub up``: it starts, survives crashes, leaves no process behind, and says why it cannot run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from child_processes import is_alive, tick_until, wait_until, wait_until_ended
from sqlalchemy import Engine

from zhub.client.credentials import Credentials, read_credentials, write_credentials
from zhub.database.sessions import system_session
from zhub.embedded.__main__ import ORGANIZATION, PROJECT, first_start
from zhub.embedded.children import Plan, Programs, own_children, postgres_child, private_dir, valkey_child
from zhub.embedded.data_dir import DataDir, load_secrets, locked, open_data_dir
from zhub.embedded.postgres import Cluster, Urls, create_roles, prepare_cluster, short_dir_name
from zhub.embedded.processes import Supervisor
from zhub.embedded.stack import Stack, StackAddresses
from zhub.errors import EmbeddedError
from zhub.process.pulse import Pulse
from zhub.tenancy import keys
from zhub.tenancy.bootstrap import ensure_project
from zhub.tenancy.scopes import SCOPES

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


def test_a_second_stack_on_the_same_directory_is_told_who_has_it(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    with locked(data_dir, port=8460), pytest.raises(EmbeddedError, match=f"process {os.getpid()}, on port 8460"):
        unstartable_stack(tmp_path / "data").run(lambda _addresses: None, lambda _message: None)


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"Port {port} of 127.0.0.1 cannot be used: .* --port"):
            unstartable_stack(tmp_path / "data", port=port).run(lambda _addresses: None, lambda _message: None)
    assert not (tmp_path / "data" / "postgres").exists()


@pytest.mark.parametrize("port", [80800, 65536, -1])
def test_a_number_that_is_no_port_is_refused_before_anything_starts(tmp_path: Path, port: int) -> None:
    with pytest.raises(EmbeddedError, match=f"{port} is not a port"):
        unstartable_stack(tmp_path / "data", port=port).run(lambda _addresses: None, lambda _message: None)
    assert not (tmp_path / "data" / "postgres").exists()


@pytest.mark.parametrize(
    ("host", "asked", "allowed"),
    [
        ("127.0.0.1", None, "1"),
        ("localhost", None, "1"),
        ("::1", None, "1"),
        ("0.0.0.0", None, None),
        ("::", None, None),
        ("192.168.0.7", None, None),
        ("example.org", None, None),
        ("0.0.0.0", "1", "1"),
    ],
)
def test_webhooks_go_to_private_addresses_only_where_nobody_else_reaches_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, asked: str | None, allowed: str | None
) -> None:
    monkeypatch.delenv("ZHUB_WEBHOOK_ALLOW_PRIVATE", raising=False)
    if asked is not None:
        monkeypatch.setenv("ZHUB_WEBHOOK_ALLOW_PRIVATE", asked)
    data_dir = open_data_dir(tmp_path / "data")
    plan = Plan(data_dir, load_secrets(data_dir), host, 0, 1, 0, 0, tmp_path)
    children = own_children(
        plan, Cluster(bin_dir=tmp_path, files=tmp_path, socket_dir=tmp_path, user=None), Programs(), has_valkey=False
    )
    assert {child.env.get("ZHUB_WEBHOOK_ALLOW_PRIVATE") for child in children} == {allowed}


def unstartable_stack(path: Path, *, port: int = 0) -> Stack:
    """A stack that must be refused before it has started anything."""

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


def test_the_supervisor_probes_scheduler_and_agent_by_what_they_vouch_for(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path / "data")
    plan = Plan(data_dir, load_secrets(data_dir), "127.0.0.1", 0, 1, 0, 0, tmp_path)
    cluster = Cluster(bin_dir=tmp_path, files=tmp_path, socket_dir=tmp_path, user=None)
    _, scheduler, agent = own_children(plan, cluster, Programs(), has_valkey=False)
    for child in (scheduler, agent):
        assert child.alive is not None and child.before_start is not None and not child.alive()
        pulse = Pulse(Path(child.env["ZHUB_ALIVE_FILE"]))
        pulse.beat("main", within_s=60)
        assert child.alive()
        pulse.beat("main", within_s=-1)
        assert not child.alive()
        pulse.beat("main", within_s=60)
        child.before_start()
        assert not child.alive()


@pytest.fixture
def start_stack(tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts the real PostgreSQL, Valkey and Ray, with stand-ins for zhub's own programs."""
    argv = [sys.executable, "-c", STACK, str(tmp_path / "data"), str(free_port()), API, SCHEDULER, AGENT]
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
        tick_until(supervisor, lambda: all(supervisor.is_ready(child.name) for child in children))
        create_roles(cluster)
        with psycopg.connect(cluster.urls().admin) as admin:
            admin.execute("CREATE TABLE kept AS SELECT 7 AS i")
        next(it for it in set(psutil.Process().children()) - others if it.name() == "postgres").kill()
        tick_until(supervisor, lambda: messages.count("postgres is ready.") == 2)
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
    shown = addresses_of(stack)
    with psycopg.connect(shown["api"]) as connection:
        assert connection.execute("SELECT pg_has_role('zhub_app', 'member')").fetchone() == (True,)
    environ = get_json(shown["api_url"])
    assert environ["ZHUB_DATABASE_URL"] == shown["api"]
    assert environ["ZHUB_STORE_URL"] == data_dir.objects.as_uri()
    assert "RAY_AUTH_TOKEN" not in environ

    wait_until(data_dir.agent_ready.exists, timeout_s=120)
    family = set(psutil.Process(stack.pid).children(recursive=True))
    assert int(data_dir.agent_ready.read_text()) in {process.pid for process in family}
    assert listening(family) <= {"127.0.0.1", "::ffff:127.0.0.1"}

    postgres = next(it for it in psutil.Process(stack.pid).children() if it.name() == "postgres")
    postgres.kill()
    wait_until(lambda: connects(shown["api"]) and not is_alive(postgres))
    family |= set(psutil.Process(stack.pid).children(recursive=True))
    stack.terminate()
    assert stack.wait(60) == 0
    assert [process for process in family if is_alive(process)] == []
    assert not data_dir.record.exists()
    assert not short_dir_name(data_dir.path).exists()
    assert not short_dir_name(data_dir.postgres).exists()


@pytest.mark.ray
def test_a_real_stack_that_is_interrupted_twice_or_killed_leaves_no_process_and_starts_again(
    start_stack: Callable[[], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    data_dir = DataDir(tmp_path / "data")
    interrupted = start_stack()
    addresses_of(interrupted)
    wait_until(data_dir.agent_ready.exists, timeout_s=120)
    family = set(psutil.Process(interrupted.pid).children(recursive=True))
    agent = next(it for it in psutil.Process(interrupted.pid).children() if AGENT in it.cmdline())
    agent.suspend()  # so that it does not follow the first signal, which would take its whole grace of 20 s
    interrupted.send_signal(signal.SIGINT)
    assert any(line.startswith("Stopping. What runs leaves a checkpoint") for line in output(interrupted))
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(10) == 0
    assert [process for process in family if is_alive(process)] == []

    data_dir.agent_ready.unlink()  # or else it is there until Ray is up, and says nothing
    killed = start_stack()
    assert connects(addresses_of(killed)["owner"])
    wait_until(data_dir.agent_ready.exists, timeout_s=120)
    family = set(psutil.Process(killed.pid).children(recursive=True))
    killed.kill()
    wait_until_ended(family)
    assert connects(addresses_of(start_stack())["owner"])


def addresses_of(stack: "subprocess.Popen[str]") -> dict[str, str]:
    """What the stack says of itself when it is ready."""
    return dict(json.loads(next(line for line in output(stack) if line.startswith("{"))))


def output(stack: "subprocess.Popen[str]") -> Iterator[str]:
    assert stack.stdout is not None
    return iter(stack.stdout.readline, "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get_json(url: str) -> dict[str, str]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        environ: dict[str, str] = json.loads(answer.read())
    return environ


def connects(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def listening(processes: set[psutil.Process]) -> set[str]:
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
    assert scopes_of(new.api_key) == set(SCOPES) and scopes_of(old) == {"chat"}
    assert read_credentials(tmp_path) == first_start(addresses) == new
