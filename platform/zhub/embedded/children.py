"""The programs of the embedded stack: how each is called, and how to tell that it is ready."""

import http.client
import ipaddress
import math
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zhub.embedded.binaries import find_valkey
from zhub.embedded.data_dir import DataDir, Secrets
from zhub.embedded.postgres import MAX_SOCKET_PATH, Cluster, clear_sockets, server_env, short_dir
from zhub.embedded.processes import Child
from zhub.errors import EmbeddedError
from zhub.process.pulse import is_alive

LOOPBACK = "127.0.0.1"
MAX_PORT = 65535
ALIVE_TIMEOUT_S = 5.0
OBJECT_STORE_BYTES = 100_000_000  # what passes through it is small; the default is a third of the memory


@dataclass(frozen=True)
class Programs:
    """zhub's own three."""

    api: Sequence[str] = (sys.executable, "-m", "zhub_api")
    scheduler: Sequence[str] = (sys.executable, "-m", "zhub.scheduler")
    agent: Sequence[str] = (sys.executable, "-m", "zhub_workers.agent")


@dataclass(frozen=True)
class Plan:
    """What the children need to know about each other."""

    data_dir: DataDir
    secrets: Secrets
    host: str
    port: int
    num_cpus: int | None
    ray_port: int
    serving_port: int
    private_dir: Path
    """Short enough for sockets, ours alone, and empty at the start."""

    @property
    def serving_url(self) -> str:
        return f"http://{LOOPBACK}:{self.serving_port}"


def postgres_child(cluster: Cluster) -> Child:
    return Child(
        "postgres",
        cluster.argv(),
        server_env(),
        ready=cluster.answers,
        ready_timeout_s=120.0,  # recovery after a crash comes first
        before_start=lambda: clear_sockets(cluster.socket_dir),
        stop_signal=signal.SIGINT,  # "fast": ends the connections, then writes everything down
        stop_grace_s=30.0,
        death_signal=signal.SIGINT,
        user=cluster.user,
        pass_fds=cluster.pass_fds,
    )


def valkey_child(plan: Plan) -> Child | None:
    """None where no Valkey is installed. It keeps nothing on disk: losing it costs latency only."""
    server = find_valkey()
    if server is None:
        return None
    path = valkey_socket(plan)
    argv = [
        str(server),
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(path.parent)),
        *("--save", "", "--appendonly", "no", "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"),
    ]
    return Child("valkey", argv, os.environ, ready=lambda: _accepts(path))


def valkey_socket(plan: Plan) -> Path:
    path = plan.data_dir.run / "valkey.sock"
    return path if len(os.fsencode(path)) <= MAX_SOCKET_PATH else plan.private_dir / "valkey.sock"


def ray_child(plan: Plan) -> Child:
    temp_dir = plan.private_dir / "ray"
    ports = dict(zip(("client", "dashboard", "metrics"), free_ports(3), strict=True))
    argv = [
        *_ray_program(),
        *("start", "--head", "--block", f"--port={plan.ray_port}", f"--node-ip-address={LOOPBACK}"),
        *("--include-dashboard=false", "--include-log-monitor=false", "--no-monitor", "--disable-usage-stats"),
        *(f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={temp_dir}", "--log-style=record"),
        # These are fixed by default, so that a second Ray on a machine does not start. 0: any free port.
        *(f"--ray-client-server-port={ports['client']}", f"--dashboard-port={ports['dashboard']}"),
        *("--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--runtime-env-agent-port=0"),
        *(f"--metrics-export-port={ports['metrics']}", "--min-worker-port=0", "--max-worker-port=0"),
        *([] if plan.num_cpus is None else [f"--num-cpus={plan.num_cpus}"]),
    ]
    return Child(
        "ray",
        argv,
        _environ() | ray_env(plan),
        # Written once Ray has found its own node; the raylet's socket is there long before a driver can connect. On a
        # busy machine that takes longer than Ray's own limit of half a minute: it ends then, and is started again.
        ready=(temp_dir / "ray_current_cluster").exists,
        before_start=lambda: shutil.rmtree(temp_dir, ignore_errors=True),
        stop_grace_s=15.0,
        death_signal=signal.SIGTERM,  # then it ends its own processes; after SIGKILL they would stay a minute
    )


def ray_env(plan: Plan) -> dict[str, str]:
    """What Ray and its drivers must agree on."""
    return {
        # Not only for macOS: where clusters are "not enabled" Ray stays on the loopback interface. Otherwise it
        # replaces 127.0.0.1 by the machine's address and listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Other users of this machine reach the loopback interface too.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": plan.secrets.ray_token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # There is no other node for the work to go to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # How long Ray's processes wait for each other: longer than by default, for a busy machine.
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_worker_register_timeout_seconds": "300",
    }


def own_children(plan: Plan, cluster: Cluster, programs: Programs, *, has_valkey: bool) -> tuple[Child, Child, Child]:
    """The API, the scheduler and the agent."""
    urls = cluster.urls()
    common = _environ() | {
        "ZHUB_STORE_URL": plan.data_dir.objects.as_uri(),
        "ZHUB_CACHE_DIR": str(plan.data_dir.cache),
        "ZHUB_SECRET_KEY": plan.secrets.secret_key,
        "ZHUB_SERVING_URL": plan.serving_url,
        "ZHUB_SERVING_TOKEN": plan.secrets.serving_token,
        "ZHUB_SERVING_HOST": LOOPBACK,
        "ZHUB_SERVING_PORT": str(plan.serving_port),
        "ZHUB_RAY_ADDRESS": f"{LOOPBACK}:{plan.ray_port}",
    }
    if is_loopback(plan.host):
        # Whoever reaches the API may use this machine anyway, and its webhooks go to programs on it. Where others
        # reach it, only who starts the stack may say so.
        common["ZHUB_WEBHOOK_ALLOW_PRIVATE"] = "1"
    if has_valkey:
        common["ZHUB_REDIS_URL"] = f"unix://{valkey_socket(plan)}"
    listen = {"ZHUB_HOST": plan.host, "ZHUB_PORT": str(plan.port)}
    as_api = common | listen | {"ZHUB_DATABASE_URL": urls.api}
    as_system = common | {"ZHUB_DATABASE_URL": urls.system}
    as_agent = as_system | ray_env(plan)
    # One machine has one port for each of the two.
    if (metrics_port := common.get("ZHUB_METRICS_PORT", "")).isdecimal():
        as_agent["ZHUB_METRICS_PORT"] = str(int(metrics_port) + 1)
    ready_file = plan.data_dir.agent_ready
    alive_files = {name: plan.data_dir.run / f"{name}.alive" for name in ("scheduler", "agent")}
    as_scheduler = as_system | {"ZHUB_ALIVE_FILE": str(alive_files["scheduler"])}
    as_agent |= {"ZHUB_READY_FILE": str(ready_file), "ZHUB_ALIVE_FILE": str(alive_files["agent"])}

    def before_agent() -> None:
        for file in (ready_file, alive_files["agent"]):
            file.unlink(missing_ok=True)

    return (
        Child(
            "api",
            programs.api,
            as_api,
            ready=lambda: _is_healthy(plan.host, plan.port, timeout_s=1.0),
            alive=lambda: _is_healthy(plan.host, plan.port, timeout_s=ALIVE_TIMEOUT_S),
        ),
        Child(
            "scheduler",
            programs.scheduler,
            as_scheduler,
            alive=partial(is_alive, alive_files["scheduler"]),
            before_start=partial(alive_files["scheduler"].unlink, missing_ok=True),
        ),
        Child(
            "agent",
            programs.agent,
            as_agent,
            ready=ready_file.exists,
            ready_timeout_s=math.inf,  # it may have to fetch a base model first
            alive=partial(is_alive, alive_files["agent"]),
            needs="ray",
            before_start=before_agent,
            stop_signal=signal.SIGINT,  # its workers stop with it, so their jobs are released first
            stop_grace_s=20.0,
        ),
    )


def private_dir(data_dir: DataDir) -> Path:
    """A short directory for the sockets of this stack, emptied of what a previous one left."""
    path = short_dir(data_dir.path)
    for leftover in path.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. Nothing holds them until a child does."""
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for listener in opened:
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in opened]


def check_port(host: str, port: int) -> None:
    """Raise EmbeddedError if the API could not listen there."""
    # Where a number is too large, the system takes its last 16 bits: the API would listen elsewhere.
    if not 0 <= port <= MAX_PORT:
        raise EmbeddedError(f"{port} is not a port: expected 1 to {MAX_PORT}. Choose another with --port.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        raise EmbeddedError(
            f"Port {port} of {host} cannot be used: {exc.strerror}. Choose another with --port."
        ) from exc


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _environ() -> dict[str, str]:
    # An address of another cluster would override ours.
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def _ray_program() -> list[str]:
    beside_python = Path(sys.executable).with_name("ray")
    return [str(beside_python)] if beside_python.is_file() else [sys.executable, "-m", "ray.scripts.scripts"]


def _accepts(unix_socket: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(str(unix_socket))
    except OSError:
        return False
    return True


def _is_healthy(host: str, port: int, *, timeout_s: float) -> bool:
    reachable = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(host, host)
    connection = http.client.HTTPConnection(reachable, port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
