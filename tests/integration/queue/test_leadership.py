"""Leadership of the scheduler: one leads at a time, and what a deposed leader does is refused."""

import itertools
import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from job_moves import all_rows, cancel, claimed, execute, expire_leases, job_row, wait_until_blocked
from sqlalchemy import Engine, func, text

from zhub import scheduler
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.postgres import Urls
from zhub.errors import DeposedError
from zhub.process.wakeup import PollingWakeup
from zhub.queue import leadership
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]

ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def elect(engine: Engine, holder: uuid.UUID, *, lease_s: float = 60) -> int | None:
    with system_session(engine) as session:
        return leadership.elect(session, holder, lease_s=lease_s)


def expire_leader(engine: Engine) -> None:
    execute(engine, "UPDATE leaders SET lease_until = now() - interval '1 second'")


def test_of_two_candidates_one_leads(system_engine: Engine) -> None:
    assert (elect(system_engine, ONE), elect(system_engine, OTHER)) == (1, None)


def test_candidates_that_start_together_get_one_leader(system_engine: Engine) -> None:
    barrier = threading.Barrier(4)

    def run(number: int) -> int | None:
        barrier.wait(timeout=10)
        return elect(system_engine, uuid.UUID(int=number))

    with ThreadPoolExecutor(4) as pool:
        terms = sorted(pool.map(run, range(4)), key=str)
    assert terms == [1, None, None, None]


def test_a_leader_that_renews_keeps_its_term(system_engine: Engine) -> None:
    assert [elect(system_engine, ONE) for _ in range(3)] == [1, 1, 1]


def test_the_term_grows_with_every_change_of_leader(system_engine: Engine) -> None:
    terms = []
    for holder in (ONE, OTHER, ONE):
        terms.append(elect(system_engine, holder))
        expire_leader(system_engine)
    assert terms == [1, 2, 3]


def test_who_resigns_lets_the_next_in_at_once(system_engine: Engine) -> None:
    elect(system_engine, ONE)
    with system_session(system_engine) as session:
        leadership.resign(session, ONE)
    assert elect(system_engine, OTHER) == 2


def test_nobody_can_resign_for_the_leader(system_engine: Engine) -> None:
    elect(system_engine, ONE)
    with system_session(system_engine) as session:
        leadership.resign(session, OTHER)
    assert elect(system_engine, OTHER) is None


@pytest.mark.parametrize("work", [scheduler.admission_pass, scheduler.maintenance_pass, scheduler.explanation_pass])
def test_what_a_deposed_leader_does_is_refused(
    system_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
    work: Callable[[Engine, uuid.UUID, int], Any],
) -> None:
    make_agent()
    make_job(caller, state="admitted", admitted_at=func.now())
    claimed(system_engine)
    expire_leases(system_engine)
    make_job(caller)
    elect(system_engine, ONE)
    expire_leader(system_engine)
    elect(system_engine, OTHER)
    before = all_rows(system_engine)
    with pytest.raises(DeposedError):
        work(system_engine, ONE, 1)
    assert all_rows(system_engine) == before


def test_a_leader_that_was_away_for_a_term_is_deposed_although_it_leads_again(system_engine: Engine) -> None:
    for holder in (ONE, OTHER, ONE):
        elect(system_engine, holder)
        expire_leader(system_engine)
    with pytest.raises(DeposedError):
        scheduler.admission_pass(system_engine, ONE, 1)


def test_an_election_waits_for_the_leaders_transaction(system_engine: Engine, until: Callable[..., Any]) -> None:
    elect(system_engine, ONE)
    expire_leader(system_engine)
    with ThreadPoolExecutor(1) as pool:
        with system_session(system_engine) as session:
            leadership.check_leading(session, ONE, 1)
            electing = pool.submit(elect, system_engine, OTHER)
            wait_until_blocked(system_engine, until)
            assert not electing.done()
        assert electing.result(timeout=10) == 2


def test_the_leader_reaps_settles_and_admits(
    system_engine: Engine,
    api_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
) -> None:
    make_agent(slots=1)
    lost = make_job(caller, state="admitted", admitted_at=func.now())
    claimed(system_engine)
    expire_leases(system_engine)
    unwanted, wanted = make_job(caller), make_job(caller)
    cancel(api_engine, caller, unwanted)
    elect(system_engine, ONE)
    scheduler.maintenance_pass(system_engine, ONE, 1)
    assert scheduler.admission_pass(system_engine, ONE, 1) == {"default"}
    assert [job_row(system_engine, job_id).state for job_id in (lost, unwanted, wanted)] == [
        "queued",
        "cancelled",
        "admitted",
    ]


def test_the_scheduler_resigns_when_it_is_stopped(system_engine: Engine) -> None:
    stopping = threading.Event()

    class StopAtFirstWait(PollingWakeup):
        """A wake-up that ends the loop instead of waiting."""

        def wait(self, topic: str, timeout_s: float) -> None:
            stopping.set()

    scheduler.run(system_engine, StopAtFirstWait(), stopping, leader_lease_s=60)
    assert elect(system_engine, OTHER) == 2


def test_a_scheduler_that_leads_again_says_its_new_term(
    system_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zhub.scheduler")
    stopping, waits = threading.Event(), itertools.count()

    class SomebodyLeadsMeanwhile(PollingWakeup):
        """A wake-up during whose first wait another scheduler leads, and its lease runs out."""

        def wait(self, topic: str, timeout_s: float) -> None:
            if next(waits):
                stopping.set()
                return
            with system_engine.begin() as connection:
                connection.execute(
                    text("UPDATE leaders SET holder = :other, term = 2, lease_until = now() - interval '1 second'"),
                    {"other": OTHER},
                )

    scheduler.run(system_engine, SomebodyLeadsMeanwhile(), stopping, leader_lease_s=60)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("leading")]
    assert said == ["leading, term 1", "leading, term 3"]


def test_a_scheduler_that_is_stopped_while_the_database_is_away_ends_quietly(database: Urls, proxy: Any) -> None:
    engine = make_engine(proxy.url(database.system), pool_size=1)
    stopping = threading.Event()

    class CutAndStop(PollingWakeup):
        """A wake-up during whose wait the database goes away and the process is told to stop."""

        def wait(self, topic: str, timeout_s: float) -> None:
            proxy.cut()
            stopping.set()

    scheduler.run(engine, CutAndStop(), stopping, leader_lease_s=60)
    engine.dispose()
