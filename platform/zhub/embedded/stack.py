"""``zhub up``: PostgreSQL, Valkey, Ray and zhub's own processes in one data directory, until told to stop."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from zhub.database.logins import grant_groups
from zhub.embedded.children import (
    Plan,
    Programs,
    check_port,
    free_ports,
    own_children,
    postgres_child,
    private_dir,
    ray_child,
    valkey_child,
)
from zhub.embedded.data_dir import load_secrets, locked, open_data_dir
from zhub.embedded.postgres import Cluster, Urls, create_roles, prepare_cluster
from zhub.embedded.processes import Supervisor, end_recorded

TICK_S = 0.05


@dataclass(frozen=True)
class StackAddresses:
    """The addresses of a running stack."""

    api_url: str
    serving_url: str
    database: Urls
    data_dir: Path
    agent_ready: Callable[[], bool]
    """Whether the agent has said that serving answers. For the thread that runs the stack."""


class Stack:
    """The embedded stack of one data directory."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        prepare: Callable[[Urls], None],
        host: str = "127.0.0.1",
        num_cpus: int | None = None,
        programs: Programs | None = None,
    ) -> None:
        """``prepare`` migrates the database; it is called at every start, with PostgreSQL up and nothing else."""
        self._path = data_dir
        self._port = port
        self._prepare = prepare
        self._host = host
        self._num_cpus = num_cpus
        self._programs = programs or Programs()

    def run(self, on_ready: Callable[[StackAddresses], None], progress: Callable[[str], None]) -> None:
        """Start everything, call ``on_ready`` once the API answers, return after SIGINT, SIGTERM or SIGHUP.

        Ray and the agent may still be starting when ``on_ready`` is called. A second SIGINT kills instead of
        stopping. Only from the main thread, and nothing else should start processes in this one meanwhile.

        Raises:
            EmbeddedError: the stack cannot start, or a part of it keeps failing. Everything has been stopped.
        """

        def tell(message: str) -> None:
            # A terminal that was closed must not keep us from stopping the children.
            with suppress(OSError):
                progress(message)

        data_dir = open_data_dir(self._path)
        with locked(data_dir, port=self._port):
            check_port(self._host, self._port)
            if ended := end_recorded(data_dir.record):
                tell(f"Ended {ended} processes of a stack that was not stopped properly.")
            private = private_dir(data_dir)
            ray_port, serving_port = free_ports(2)
            plan = Plan(
                data_dir=data_dir,
                secrets=load_secrets(data_dir),
                host=self._host,
                port=self._port,
                num_cpus=self._num_cpus,
                ray_port=ray_port,
                serving_port=serving_port,
                private_dir=private,
            )
            tell("Starting PostgreSQL.")
            cluster = prepare_cluster(data_dir.postgres)
            supervisor = Supervisor(logs=data_dir.logs, record=data_dir.record, progress=tell)
            try:
                with _stop_signals(supervisor) as stopping, supervisor:
                    run = _Run(plan, cluster, self._programs, supervisor, stopping, tell)
                    run.until_stopped(self._prepare, on_ready)
                    tell(
                        "Stopping. What runs leaves a checkpoint, and goes on at the next start. Ctrl-C again: at once."
                    )
                shutil.rmtree(private, ignore_errors=True)
            finally:
                if cluster.socket_dir != data_dir.postgres:
                    shutil.rmtree(cluster.socket_dir, ignore_errors=True)


@dataclass(frozen=True)
class _Run:
    plan: Plan
    cluster: Cluster
    programs: Programs
    supervisor: Supervisor
    stopping: Callable[[], bool]
    progress: Callable[[str], None]

    def until_stopped(self, prepare: Callable[[Urls], None], on_ready: Callable[[StackAddresses], None]) -> None:
        self.supervisor.add(postgres_child(self.cluster))
        if not self._wait_for("postgres"):
            return
        urls = self.cluster.urls()
        create_roles(self.cluster)
        prepare(urls)
        grant_groups(urls.admin)
        self.progress("Starting the API, the scheduler and Ray.")
        valkey = valkey_child(self.plan)
        if valkey is None:
            self.progress("Valkey is not installed; processes poll instead of being woken up.")
        api, scheduler, agent = own_children(self.plan, self.cluster, self.programs, has_valkey=valkey is not None)
        for child in (valkey, ray_child(self.plan), api, scheduler, agent):
            if child:
                self.supervisor.add(child)
        if self._wait_for("api"):
            on_ready(self._addresses(urls))
            self._wait_for(None)

    def _wait_for(self, name: str | None) -> bool:
        """Supervise until this child is ready: True; or until a signal says stop: False."""
        while not self.stopping():
            self.supervisor.tick()
            if name and self.supervisor.is_ready(name):
                return True
            time.sleep(TICK_S)
        return False

    def _addresses(self, urls: Urls) -> StackAddresses:
        host = f"[{self.plan.host}]" if ":" in self.plan.host else self.plan.host
        return StackAddresses(
            api_url=f"http://{host}:{self.plan.port}",
            serving_url=self.plan.serving_url,
            database=urls,
            data_dir=self.plan.data_dir.path,
            agent_ready=lambda: self.supervisor.is_ready("agent"),
        )


@contextmanager
def _stop_signals(supervisor: Supervisor) -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked us to stop; a SIGINT after that kills the children at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            supervisor.kill()
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
