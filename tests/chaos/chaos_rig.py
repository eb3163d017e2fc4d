"""All of zhub but the API as processes of their own on real parts, each of which can be harmed, and what must hold.

Every process reaches PostgreSQL through a proxy of its own, and workers the S3 server through one of theirs.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from fault_proxy import FaultProxy
from process_launcher import call
from sqlalchemy import text

from zhub import states
from zhub.database.logins import ADMIN
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.postgres import SOCKET_NAME, Cluster, clear_sockets
from zhub.embedded.processes import ServerUser, spawn
from zhub.errors import UnavailableError
from zhub.manifest import MANIFEST_FILE
from zhub.queue import attempts, invariants
from zhub.storage.object_store import open_store

HERE = Path(__file__).parent
LEASE_S, LEADER_LEASE_S = 3.0, 2.0
GENEROUS_S = 120.0  # for what takes seconds, on a machine that may be busy
BUCKET = "chaos"
ROWS = b'{"messages": [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]}\n'
CLOCKS_S = {"scheduler-1": -3600, "agent-1": 3600, "client-1": -86_400}
"""How far the wall clocks of these processes are off, always."""


@dataclass
class Part:
    """A process that can be killed, frozen and started again."""

    name: str
    argv: list[str]
    env: Mapping[str, str]
    log: Path
    user: ServerUser | None = None
    pass_fds: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    popen: "subprocess.Popen[bytes] | None" = None
    frozen: bool = False

    def start(self) -> None:
        assert self.popen is None, f"{self.name} runs"
        # Servers must not outlive the tests, however these end.
        self.popen = spawn(self.argv, env=self.env, log=self.log, user=self.user, pass_fds=self.pass_fds)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as its operator does, or by force where it does not listen."""
        self.thaw()
        self._end(self.stop_signal)

    def freeze(self) -> None:
        if self.popen is not None:
            self.popen.send_signal(signal.SIGSTOP)
            self.frozen = True

    def thaw(self) -> None:
        if self.popen is not None and self.frozen:
            self.popen.send_signal(signal.SIGCONT)
        self.frozen = False

    def check_alive(self) -> None:
        """Nothing of ours may end because of what happens to something else."""
        if self.popen is not None and self.popen.poll() is not None:
            end = self.log.read_text(errors="replace")[-3000:]
            raise AssertionError(f"{self.name} ended by itself with status {self.popen.returncode}:\n{end}")

    def _end(self, number: signal.Signals) -> None:
        if self.popen is None:
            return
        self.popen.send_signal(number)
        try:
            self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.popen, self.frozen = None, False


@dataclass
class Rig:
    """What a round harms, asks and checks. Made by ``open_rig``."""

    home: Path
    cluster: Cluster
    postgres: Part
    redis: Part
    s3: Part
    store_proxy: FaultProxy
    store_url: str
    """Past the proxy."""
    proxies: dict[str, FaultProxy] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    starts: int = 0
    whole: set[str] = field(default_factory=set)
    """Digests of the versions whose bytes were seen to be there."""
    world: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = make_engine(self.cluster.urls().system, pool_size=2)

    @property
    def redis_socket(self) -> Path:
        return self.home / "redis"

    @property
    def agents(self) -> list[str]:
        return [name for name in self.parts if name.startswith("agent")]

    @property
    def schedulers(self) -> list[str]:
        return [name for name in self.parts if name.startswith("scheduler")]

    # Processes

    def add(self, name: str, *argv: str, url: str, **env: str) -> None:
        """Start a process of zhub behind a proxy of its own, its clock off by what ``CLOCKS_S`` says."""
        self.proxies[name] = FaultProxy(self.cluster.socket_dir / SOCKET_NAME)
        settings = {
            "ZHUB_DATABASE_URL": self.proxies[name].url(url),
            "ZHUB_STORE_URL": self.store_url.rpartition(":")[0] + f":{self.store_proxy.port}",
            "ZHUB_REDIS_URL": f"unix://{self.redis_socket}",
            "ZHUB_SECRET_KEY": "0" * 64,
            "ZHUB_CACHE_DIR": str(self.home / "cache"),
            "ZHUB_LEASE_S": str(LEASE_S),
            "ZHUB_LEADER_LEASE_S": str(LEADER_LEASE_S),
            "ZHUB_POLL_S": "0.1",
            "ZHUB_JOBS_PER_WORKER": "2",
        }
        program = [sys.executable, str(HERE / "shifted.py"), str(CLOCKS_S.get(name, 0)), *argv]
        self.parts[name] = Part(name, program, os.environ | settings | env, self.home / f"{name}.log")
        self.parts[name].start()

    def start_client(self, name: str, seed: str) -> None:
        """Start a client, or one that follows another, with other requests than that one made."""
        if name in self.parts:
            self.parts[name].argv[4] = seed
            self.parts[name].start()
            return
        world = self.home / "world.json"
        world.write_text(json.dumps(self.world))
        program = str(HERE / "client_program.py")
        self.add(name, program, seed, str(self.journal), str(world), url=self.cluster.urls().api)

    def restart(self, name: str) -> None:
        """``kill -9`` a process and start it again."""
        self.parts[name].kill()
        if name.startswith("client"):
            self.starts += 1
            self.start_client(name, f"{name} again {self.starts}")
        else:
            self.parts[name].start()

    def workers(self) -> list[Path]:
        """Where the workers of all agents listen."""
        return [path.with_suffix("") for path in self.home.glob("workers-*/zhub-*.pid")]

    def leader(self) -> str:
        """The scheduler that leads; whoever it is must have said so in its log."""

        def found() -> str | None:
            term = self.ask("SELECT term FROM leaders WHERE lease_until > now()")
            said = [
                name
                for name in self.schedulers
                if term and f"leading, term {term[0].term}\n" in self.parts[name].log.read_text(errors="replace")
            ]
            return said[0] if said else None

        return str(self.until("a scheduler that leads", found))

    # Servers

    def start_postgres(self) -> None:
        clear_sockets(self.cluster.socket_dir)
        self.postgres.start()
        self.until("PostgreSQL", self.cluster.answers)

    def restart_postgres(self) -> None:
        """``pg_ctl restart -m immediate``: its processes end where they stand, and the start recovers from the log."""
        assert self.postgres.popen is not None
        self.postgres.popen.send_signal(signal.SIGQUIT)
        self.postgres.popen.wait(60)
        self.postgres.popen = None
        self.start_postgres()

    def terminate_backends(self) -> None:
        with psycopg.connect(self.cluster.url(ADMIN, "postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zhub'")

    def start_redis(self) -> None:
        self.redis.start()
        self.until("Valkey", lambda: self.tell_redis("PING"))

    def tell_redis(self, command: str) -> bool:
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(5)
            connection.connect(str(self.redis_socket))
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(100).startswith(b"+")
        return False

    # Time

    def until(self, what: str, question: Callable[[], Any], timeout_s: float = GENEROUS_S) -> Any:
        """Ask again and again until there is an answer; no process may end by itself meanwhile."""
        give_up = time.monotonic() + timeout_s
        while True:
            with suppress(UnavailableError):
                if answer := question():
                    return answer
            for part in self.parts.values():
                part.check_alive()
            if time.monotonic() > give_up:
                raise AssertionError(f"waited {timeout_s:g} s for {what}. {self.describe()}")
            time.sleep(0.05)

    def live(self, seconds: float) -> None:
        """Let a fault last. Nothing is concluded from how long it was."""
        over = time.monotonic() + seconds
        self.until("a while", lambda: time.monotonic() >= over)

    # What is, and what must be

    @property
    def journal(self) -> Path:
        """What the clients were told."""
        return self.home / "journal"

    def ask(self, statement: str, **values: Any) -> list[Any]:
        with system_session(self.engine) as session:
            return list(session.execute(text(statement), values).all())

    def agent_at_work(self) -> str:
        """An agent that has attempts under way."""
        return str(self.until("an agent at work", lambda: next(filter(self._attempts, self.agents), None)))

    def taken_over(self, agent: str) -> Callable[[], bool]:
        """Whether all that an agent is doing now has been taken from it, and others have ended those jobs."""
        taken = [row.job_id for row in self._attempts(agent)]
        elsewhere = "SELECT 1 FROM jobs WHERE id = ANY(:taken) AND finished_at IS NULL AND state <> 'paused'"

        def over() -> bool:
            self._hurry()
            return not self._attempts(agent) and not self.ask(elsewhere, taken=taken)

        return over

    def done_again(self, agent: str, statement: bytes) -> bool:
        """Whether the job that a statement of this agent is about is another's by now, or has ended without it."""
        self._hurry()
        rows = self.ask("SELECT id, agent_id, state FROM jobs")  # in between it is nobody's
        (job,) = [row for row in rows if any(form in statement for form in (row.id.bytes, row.id.hex.encode()))]
        if job.state in states.ACTIVE:
            return bool(job.agent_id != self._agent_id(agent))
        return job.state in (*states.TERMINAL, states.PAUSED)

    def _hurry(self) -> None:
        """End every back-off: what may go wrong does so without the wait."""
        with system_session(self.engine) as session:
            session.execute(text("UPDATE jobs SET not_before = NULL WHERE state = 'queued' AND not_before > now()"))

    def _agent_id(self, agent: str) -> uuid.UUID:
        return uuid.UUID((self.home / f"workers-{agent}" / "agent").read_text())

    def _attempts(self, agent: str) -> list[Any]:
        """The open attempts of an agent."""
        statement = "SELECT job_id FROM attempts WHERE ended_at IS NULL AND agent_id = :agent"
        return self.ask(statement, agent=self._agent_id(agent))

    def settle(self) -> None:
        """Stop the clients, and wait until every job has ended or is paused, and no worker holds anything."""
        for name, part in self.parts.items():
            if name.startswith("client"):
                part.stop()
        unsettled = (
            "SELECT id FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled') "
            "AND NOT (state = 'paused' AND desired = 'pause')"
        )

        def settled() -> bool:
            self._hurry()
            return not self.ask(unsettled)

        self.until("every job to end", settled)
        self.until("every worker to be free", lambda: not any(self._held(path) for path in self.workers()))

    def check(self, *, may_fail: bool) -> None:
        """What must hold now that all is quiet. ``may_fail``: faults enough may have spent a job's budget."""
        for part in (*self.parts.values(), self.postgres, self.redis, self.s3):
            part.check_alive()
        with system_session(self.engine) as session:
            self._none("these rows break a rule of the history", invariants.examine(session))
        found = {str(row.id): row.state for row in self.ask("SELECT id, state FROM jobs")}
        told = [json.loads(line) for line in self.journal.read_text().splitlines()]
        self._none("jobs that clients were told to exist are gone", [line for line in told if line["job"] not in found])
        cancelled = [line for line in told if line["asked"] == "cancel"]
        kept = [line for line in cancelled if found[line["job"]] != states.CANCELLED]
        self._none("jobs whose cancellation was accepted have ended otherwise", kept)
        failed = self.ask("SELECT id, infra_failures, user_failures, error FROM jobs WHERE state = 'failed'")
        unexplained = [row for row in failed if not may_fail or row.infra_failures <= attempts.MAX_INFRA_FAILURES]
        self._none("jobs failed although their budget was not spent", unexplained)
        self._check_objects()

    def _none(self, what: str, found: Sequence[object]) -> None:
        if found:
            raise AssertionError(f"{what}: {'; '.join(map(str, found))}. Logs: {self.home}")

    def _check_objects(self) -> None:
        """Each version's bytes are in the store, under the digests that its row and its manifest give."""
        store = open_store(self.store_url)
        for row in self.ask("SELECT digest, key_prefix FROM expert_versions"):
            if row.digest in self.whole:
                continue
            content = b"".join(store.open(f"{row.key_prefix}/{MANIFEST_FILE}"))
            assert hashlib.sha256(content).hexdigest() == row.digest
            for file in json.loads(content)["files"]:
                stored = b"".join(store.open(f"{row.key_prefix}/{file['name']}"))
                assert hashlib.sha256(stored).hexdigest() == file["sha256"]
            self.whole.add(row.digest)

    def describe(self) -> str:
        """Where things stand, for whoever has to find out why."""
        try:
            open_jobs = self.ask(
                "SELECT id, state, desired, fence, agent_id, infra_failures, lease_until - now() AS lease, "
                "not_before - now() AS back_off FROM jobs WHERE finished_at IS NULL ORDER BY id LIMIT 10"
            )
        except UnavailableError as exc:
            open_jobs = [exc]
        return f"Logs: {self.home}. Open jobs: " + "; ".join(map(str, open_jobs))

    @staticmethod
    def _held(path: Path) -> object:
        try:
            return call(path, "held")
        except TimeoutError:
            return "no answer"
        except (OSError, EOFError):
            return None
