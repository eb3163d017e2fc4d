"""The scheduler process: several may run, one leads. It admits jobs, takes back lost ones, settles what users want.

Started as ``python -m zhub.scheduler``. Killed at any moment it loses nothing: each pass is one transaction.
"""

import logging
import signal
import threading
import time
import uuid
from datetime import timedelta
from functools import partial
from types import FrameType

from sqlalchemy import Engine, delete, func

from zhub import admission, checkpoints, jobs, leadership, wishes
from zhub.config import Settings
from zhub.db import make_engine, system_session
from zhub.errors import DeposedError, UnavailableError
from zhub.logs import configure_logging
from zhub.models import Agent
from zhub.store import ObjectStore, open_store
from zhub.wakeup import SCHEDULER, Wakeup, agent_topic, open_wakeup

POLL_S = 1.0
SWEEP_S = 10.0
EXPLAIN_S = 2.0
AGENT_LOST_AFTER_S = 30.0
AGENT_FORGOTTEN_AFTER = timedelta(days=1)

log = logging.getLogger("zhub.scheduler")


def main() -> None:
    configure_logging()
    settings = Settings()  # type: ignore[call-arg]  # its fields come from the environment
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    engine = make_engine(settings.database_url, pool_size=2)
    sweeping = partial(sweep, engine, open_store(settings.store_url), stopping)
    threading.Thread(target=sweeping, daemon=True, name="sweep").start()
    run(engine, open_wakeup(settings.redis_url), stopping, leader_lease_s=settings.leader_lease_s)


def run(engine: Engine, wakeup: Wakeup, stopping: threading.Event, *, leader_lease_s: float) -> None:
    """Pass after pass until ``stopping`` is set; a database that is away is waited for."""
    holder = uuid.uuid4()
    led: int | None = None
    tended_at = explained_at = float("-inf")
    while not stopping.is_set():
        try:
            with system_session(engine) as session:
                term = leadership.elect(session, leadership.SCHEDULER, holder, lease_s=leader_lease_s)
            if term != led:  # also from one term of its own to another, when somebody led in between unnoticed
                led = term
                log.info("leading, term %s", term) if term is not None else log.info("another scheduler leads")
            if term is not None:
                for cluster in schedule(engine, holder, term):
                    wakeup.notify(agent_topic(cluster))
                if time.monotonic() - tended_at >= POLL_S:
                    tend(engine, holder, term)
                    tended_at = time.monotonic()
                if time.monotonic() - explained_at >= EXPLAIN_S:
                    explain(engine, holder, term)
                    explained_at = time.monotonic()
        except (UnavailableError, DeposedError) as exc:
            log.warning("%s", exc)
        wakeup.wait(SCHEDULER, POLL_S)
    try:
        with system_session(engine) as session:
            leadership.resign(session, leadership.SCHEDULER, holder)
    except UnavailableError as exc:
        log.warning("%s", exc)  # the next leader waits for the lease to run out
    log.info("stopped")


def schedule(engine: Engine, holder: uuid.UUID, term: int) -> set[str]:
    """What somebody waits for, in one transaction; return the clusters whose agents have something new to do."""
    with system_session(engine) as session:
        leadership.check_leading(session, leadership.SCHEDULER, holder, term)
        wishes.settle(session)
        admitted = admission.admit(session, agent_lost_after_s=AGENT_LOST_AFTER_S)
    for job_id, cluster in admitted:
        log.info("job %s: admitted to cluster %s", job_id, cluster)
    return {cluster for _, cluster in admitted}


def tend(engine: Engine, holder: uuid.UUID, term: int) -> None:
    """Take back lost jobs, charge what was used, and forget agents that went away long ago, in one transaction."""
    with system_session(engine) as session:
        leadership.check_leading(session, leadership.SCHEDULER, holder, term)
        for job_id, state in jobs.reap(session):
            log.warning("job %s: lease ran out, now %s", job_id, state)
        admission.charge(session)
        session.execute(delete(Agent).where(Agent.seen_at < func.now() - AGENT_FORGOTTEN_AFTER))


def explain(engine: Engine, holder: uuid.UUID, term: int) -> None:
    """Tell every queued job what it waits for, in a transaction of its own: no admission waits for this."""
    with system_session(engine) as session:
        leadership.check_leading(session, leadership.SCHEDULER, holder, term)
        admission.explain(session, agent_lost_after_s=AGENT_LOST_AFTER_S)


def sweep(engine: Engine, store: ObjectStore, stopping: threading.Event) -> None:
    """Remove deleted checkpoints until ``stopping`` is set; beside the passes, which never wait for the store."""
    while not stopping.is_set():
        try:
            while checkpoints.sweep(engine, store):
                log.info("swept deleted checkpoints")
        except UnavailableError as exc:
            log.warning("%s", exc)
        stopping.wait(SWEEP_S)


if __name__ == "__main__":
    main()
