"""Which queued jobs one pass of admission admits: the oldest that are wanted, and no more than there are free slots."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from job_moves import admit, claimed, execute, publish_version
from sqlalchemy import Engine, func, text
from sqlalchemy.exc import IntegrityError

from zhub.database.sessions import system_session
from zhub.models import Agent
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def test_admission_fills_the_free_slots_with_the_oldest_jobs(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=2)
    made = [make_job(caller) for _ in range(5)]
    assert admit(system_engine) == set(made[:2])


def test_admission_gives_out_no_slot_twice(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=2)
    made = [make_job(caller) for _ in range(5)]
    seen = [admit(system_engine), admit(system_engine)]
    fence = claimed(system_engine).fence
    seen.append(admit(system_engine))
    publish_version(system_engine, made[0], fence)
    seen.append(admit(system_engine))
    assert seen == [set(made[:2]), set(), set(), {made[2]}]


def test_a_light_job_needs_no_slot(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    heavy = [make_job(caller) for _ in range(2)]
    light = {make_job(caller, kind="validate") for _ in range(4)}
    assert admit(system_engine) == light | {heavy[0]}


def test_light_jobs_take_no_slot_from_heavy_ones(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    make_job(caller, kind="validate")
    admit(system_engine)
    heavy = make_job(caller)
    assert admit(system_engine) == {heavy}


def test_two_agents_of_one_cluster_offer_its_slots_once(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    for _ in range(2):
        make_agent(slots=2)
    for _ in range(5):
        make_job(caller)
    assert len(admit(system_engine)) == 2


def test_an_agent_that_was_not_seen_lately_offers_nothing(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent()
    execute(system_engine, "UPDATE agents SET seen_at = now() - interval '31 seconds'")
    make_job(caller)
    assert admit(system_engine) == set()


def test_each_cluster_admits_its_own_jobs(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(cluster="east", slots=1)
    make_agent(cluster="west", slots=2)
    make_job(caller, cluster="nowhere")
    east = [make_job(caller, cluster="east") for _ in range(2)]
    west = [make_job(caller, cluster="west") for _ in range(3)]
    assert admit(system_engine) == {east[0], *west[:2]}


@pytest.mark.parametrize("columns", [{"desired": "cancel"}, {"desired": "pause"}, {"state": "waiting"}])
def test_a_job_that_nobody_wants_to_run_is_not_admitted(
    system_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
    columns: dict[str, Any],
) -> None:
    make_agent()
    make_job(caller, **columns)
    assert admit(system_engine) == set()


def test_a_job_that_waits_for_its_next_try_lets_others_pass(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    make_job(caller, not_before=func.now() + text("interval '1 hour'"))
    ready = make_job(caller)
    assert admit(system_engine) == {ready}


def test_priority_comes_before_age(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    make_job(caller)
    urgent = make_job(caller, priority=5)
    assert admit(system_engine) == {urgent}


def test_an_agent_is_one_row_however_often_it_announces_itself(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID]
) -> None:
    agent_id = make_agent()
    with pytest.raises(IntegrityError), system_session(system_engine) as session:
        session.add(Agent(id=agent_id, cluster="default", slots=1))
