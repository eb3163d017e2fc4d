"""Claims by many processes, WAL a job, and the cost of a job behind a backlog."""

import asyncio
import multiprocessing
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import procrastinate
import psycopg
from job_queue_rows import fill, make_owner, void
from procrastinate.jobs import Status
from sqlalchemy import Engine, orm, text

from zhub.admission.admit import admit
from zhub.database.sessions import make_engine, statement_session, system_session
from zhub.embedded.postgres import Urls
from zhub.kinds import table
from zhub.models import Agent as AgentRow
from zhub.models import Job
from zhub.queue import attempts, jobs
from zhub.queue import claims as job_claims
from zhub_workers.agent.loop import MAX_CLAIMS

CLAIMS = 2000
BACKLOG_JOBS = 800
Work = Callable[[str, Any], int]
Session = Callable[[Engine], AbstractContextManager[orm.Session]]


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
