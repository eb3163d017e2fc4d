"""Jobs that share a worker and jobs that take several."""

import uuid
from collections.abc import Callable
from typing import Any

from admission_passes import admit, places
from job_moves import execute
from sqlalchemy import Engine

from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def test_small_jobs_take_a_place_of_a_worker(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    execute(system_engine, "UPDATE agents SET jobs_per_worker = 3")
    alone = make_job(acme)
    small = [make_job(acme, pack_key="basis") for _ in range(4)]
    assert set(admit(system_engine)) == {alone, *small[:3]}


def test_a_small_job_that_was_lost_before_takes_a_worker(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    execute(system_engine, "UPDATE agents SET jobs_per_worker = 3")
    lost = make_job(acme, pack_key="basis", infra_failures=1)
    small = [make_job(acme, pack_key="basis") for _ in range(4)]
    assert set(admit(system_engine)) == {lost, *small[:3]}


def test_a_job_that_asks_for_more_workers_than_there_are_gets_all_of_them(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    large = make_job(acme, workers=8)
    make_job(acme)
    assert admit(system_engine) == [large]


def test_a_large_job_is_not_passed_by_small_ones_for_ever(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=2)
    first = make_job(acme)
    assert admit(system_engine) == [first]
    large = make_job(globex, workers=2)
    small = make_job(acme)
    assert admit(system_engine) == [first]
    by_job = places(system_engine)
    assert (by_job[large].position, by_job[small].position) == (1, 2)
    assert "It is next. It needs 2 workers, and 1 of 2 workers free" in by_job[large].reason
