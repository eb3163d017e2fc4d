"""What becomes of jobs when PostgreSQL is restarted under them with ``-m immediate``, beside procrastinate.

Needs the extra ``bench``. JOBS are enqueued, and LATER more by a client that asks until it is answered, while the
server is restarted RESTARTS times, each when another quarter of JOBS has ended. What has ended after GIVE_UP_S counts.
Ours is left to itself; procrastinate once as well, and once with somebody who starts its worker again whenever that
has ended: it differs from run to run whether that happens, and whether a job stays marked as running for ever. The
seconds are no measure of speed: our agent looks at its attempts twice a second, enough for jobs that take minutes.
"""

import json
import logging
import multiprocessing
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
from job_queue_rows import install_peer, make_owner, valkey
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from zhub import scheduler
from zhub.database.logins import ADMIN, grant_groups
from zhub.database.migrate import upgrade
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.postgres import DATABASE, Cluster, clear_sockets, create_roles, prepare_cluster, server_env
from zhub.embedded.processes import spawn
from zhub.errors import UnavailableError
from zhub.models import Job
from zhub.process.config import Settings
from zhub.process.wakeup import SCHEDULER, open_wakeup
from zhub.queue import jobs
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import Agent
from zhub_workers.attempts.attempt import Attempt, AttemptContext

JOBS, LATER, RESTARTS = 200, 100, 3
JOB_S = 0.05
AT_A_TIME = 4
GIVE_UP_S = 90.0
BAR = 1.0
PEER = "peer"


@dataclass
class System:
    """One of those that are compared."""

    work: Callable[[str], None]
    """Runs jobs until its process is killed; takes the database's URL."""
    url: str
    database: str
    enqueue: Callable[[str], None]
    """Raises where the answer does not come."""
    ended: str
    """The names of jobs that have ended, in SQL."""
    restarted: bool = False
    """Whether somebody starts it again when it has ended by itself."""


def main() -> None:
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    with running_postgres() as (cluster, restart), valkey() as redis_url:
        upgrade(cluster.urls().owner)
        grant_groups(cluster.urls().admin)
        engine = make_engine(cluster.urls().system, pool_size=2)
        results = {"zhub": share_of_jobs_that_end(ours(cluster, engine, redis_url), cluster, restart)}
        engine.dispose()
        for name, restarted in (("procrastinate", False), ("procrastinate, its worker restarted", True)):
            results[name] = share_of_jobs_that_end(peer(cluster, restarted=restarted), cluster, restart)
    table = Table(title=f"{JOBS + LATER} jobs enqueued before and during {RESTARTS} restarts of PostgreSQL")
    for column in ("", "ended", "after, s"):
        table.add_column(column, justify="right")
    for name, (share, seconds) in results.items():
        table.add_row(name, f"{100 * share:.1f} %", f"{seconds:.1f}")
    Console().print(table)
    write(results)


@contextmanager
def running_postgres() -> Iterator[tuple[Cluster, Callable[[], None]]]:
    """A server that keeps what was committed, and how to restart it."""
    home = Path(tempfile.mkdtemp(prefix="zhub-bench-"))
    home.chmod(0o711)  # PostgreSQL's user goes through it
    cluster = prepare_cluster(home / "postgres")
    server: list[Any] = []

    def start() -> None:
        clear_sockets(cluster.socket_dir)
        log = home / "postgres.log"
        server.append(spawn(cluster.argv(), env=server_env(), log=log, user=cluster.user, pass_fds=cluster.pass_fds))
        while not cluster.answers():
            time.sleep(0.02)

    def stop() -> None:
        server[-1].send_signal(signal.SIGQUIT)
        server[-1].wait()

    def restart() -> None:
        stop()
        start()

    start()
    try:
        create_roles(cluster)
        yield cluster, restart
    finally:
        stop()
        shutil.rmtree(home)


def share_of_jobs_that_end(system: System, cluster: Cluster, restart: Callable[[], None]) -> tuple[float, float]:
    """The share, and how many seconds after the first jobs were there it was reached."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []

    def keep_working() -> None:
        if not processes or (system.restarted and not processes[-1].is_alive()):
            processes.append(context.Process(target=system.work, args=(system.url,)))
            processes[-1].start()

    names = [f"{number}" for number in range(JOBS + LATER)]
    try:
        keep_working()
        for name in names[:JOBS]:
            system.enqueue(name)
        later = threading.Thread(target=enqueue_all, args=(system, names[JOBS:]))
        later.start()
        began = at = time.monotonic()
        count, dues = 0, [JOBS * number // (RESTARTS + 1) for number in range(1, RESTARTS + 1)]
        while count < len(names) and time.monotonic() - began < GIVE_UP_S:
            keep_working()
            if (now := len(ended(system, cluster))) > count:
                count, at = now, time.monotonic()
            if dues and count >= dues[0]:
                del dues[0]
                restart()
            time.sleep(0.02)
        later.join()
        return count / len(names), at - began
    finally:
        for process in processes:
            process.kill()
            process.join()


def enqueue_all(system: System, names: list[str]) -> None:
    for name in names:
        while True:
            try:
                system.enqueue(name)
                break
            except (UnavailableError, procrastinate.exceptions.ConnectorException, psycopg.Error):
                time.sleep(0.05)


def ended(system: System, cluster: Cluster) -> set[str]:
    with psycopg.connect(cluster.url(ADMIN, system.database)) as connection:
        return {str(name) for (name,) in connection.execute(system.ended.encode())}


# zhub


def ours(cluster: Cluster, engine: Engine, redis_url: str) -> System:
    owner, wakeup = make_owner(engine), open_wakeup(redis_url)

    def enqueue(name: str) -> None:
        spec = {"kind": "decompose", "name": name}
        with system_session(engine) as session:
            jobs.enqueue(session, Job(kind="decompose", spec=spec, pack_key="bench", **owner), "Enqueued.")
        wakeup.notify(SCHEDULER)

    ended = "SELECT spec->>'name' FROM jobs WHERE state = 'succeeded'"
    return System(partial(work_ours, redis_url), cluster.urls().system, DATABASE, enqueue, ended)


def work_ours(redis_url: str, url: str) -> None:
    """A scheduler and an agent."""
    logging.getLogger().setLevel(logging.CRITICAL)
    settings = Settings(database_url=url, store_url="file:///nowhere", jobs_per_worker=AT_A_TIME)
    stopping = threading.Event()
    launcher = ThreadLauncher({"light": last, "torch": last}, jobs_per_worker=AT_A_TIME)
    agent = Agent(settings, make_engine(url, pool_size=2), launcher)
    threading.Thread(target=agent.run, args=(open_wakeup(redis_url), stopping), daemon=True).start()
    engine = make_engine(url, pool_size=2)
    scheduler.run(engine, open_wakeup(redis_url), stopping, leader_lease_s=settings.leader_lease_s)


def last(_attempt: Attempt, _context: AttemptContext) -> dict[str, Any]:
    time.sleep(JOB_S)
    return {}


# procrastinate


def peer(cluster: Cluster, *, restarted: bool) -> System:
    with psycopg.connect(cluster.url(ADMIN, "postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS peer WITH (FORCE)")
        connection.execute("CREATE DATABASE peer")
    url = cluster.url(ADMIN, PEER)
    install_peer(url)

    def enqueue(name: str) -> None:
        # A client of its own each time: what is measured is the worker.
        app = make_app(procrastinate.SyncPsycopgConnector(conninfo=url, min_size=1, max_size=1))
        with app.open():
            app.tasks["last"].defer(name=name)

    ended = "SELECT args->>'name' FROM procrastinate_jobs WHERE status = 'succeeded'"
    return System(work_peer, url, PEER, enqueue, ended, restarted)


def make_app(connector: Any) -> Any:
    app = procrastinate.App(connector=connector)

    @app.task(name="last")  # type: ignore[untyped-decorator]
    def last_so_long(name: str) -> None:
        time.sleep(JOB_S)

    return app


def work_peer(url: str) -> None:
    logging.getLogger().setLevel(logging.CRITICAL)
    make_app(procrastinate.PsycopgConnector(conninfo=url)).run_worker(concurrency=AT_A_TIME)


def write(results: dict[str, tuple[float, float]]) -> None:
    share = results["zhub"][0]
    written = {
        "name": "recovery",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "results": {name: {"share": found, "after_s": seconds} for name, (found, seconds) in results.items()},
        "bars": {"recovery": {"value": share, "bar": BAR, "better": "higher"}},
    }
    print(f"recovery: {share:.3f} (bar {BAR:g})")
    (Path(__file__).parent / "results" / "recovery.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
