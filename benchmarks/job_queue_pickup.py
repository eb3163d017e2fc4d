"""From enqueueing a job to its first line: zhub, procrastinate and dramatiq, each in processes of its own."""

import asyncio
import multiprocessing
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import procrastinate
from dramatiq.brokers.redis import RedisBroker
from job_queue_rows import make_owner, void
from pydantic import SecretStr

from zhub import scheduler
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.postgres import Urls
from zhub.models import Job
from zhub.process.config import Settings
from zhub.process.wakeup import SCHEDULER, open_wakeup
from zhub.queue import jobs
from zhub_workers.agent.launcher import ThreadLauncher
from zhub_workers.agent.loop import Agent
from zhub_workers.attempts.attempt import Attempt, AttemptContext

PICKUPS = 200
GAP_S = 0.06  # between two jobs, on average


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
