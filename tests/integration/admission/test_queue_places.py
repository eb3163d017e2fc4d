"""What those who wait are told: their position, the reason, and when they may begin."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from admission_passes import admit, places
from job_moves import execute
from sqlalchemy import Engine, func, text

from zhub.admission.admit import withdraw
from zhub.database.sessions import system_session
from zhub.queue import jobs
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def test_a_priority_is_a_head_start_of_ten_minutes(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=1)
    old, middle, urgent = make_job(acme), make_job(acme), make_job(acme, priority=1)
    for job_id, minutes in ((old, 11), (middle, 9)):
        execute(
            system_engine,
            "UPDATE jobs SET ranked_at = ranked_at - make_interval(mins => :m) WHERE id = :id",
            m=minutes,
            id=job_id,
        )
    by_job = places(system_engine)
    assert [by_job[job_id].position for job_id in (old, urgent, middle)] == [1, 2, 3]


def test_everybody_who_waits_is_told_what_for(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    running = make_job(acme, expected_s=600.0)
    admit(system_engine)
    ours, theirs = [make_job(acme, expected_s=60.0) for _ in range(2)], make_job(globex, expected_s=60.0)
    away = make_job(acme, cluster="nowhere")
    again = make_job(acme, not_before=func.now() + text("interval '1 hour'"))
    by_job = places(system_engine)
    assert running not in by_job
    assert [by_job[job_id].position for job_id in (theirs, *ours)] == [1, 2, 3]
    assert by_job[theirs].reason.startswith("It is next. It needs 1 worker, and 0 of 1 worker free")
    assert by_job[ours[0]].reason == "1 job is served before it: 1 of others'."
    assert by_job[ours[1]].reason == "2 jobs are served before it: 1 of your organisation's and 1 of others'."
    assert "No agent of cluster 'nowhere' is alive" in by_job[away].reason and by_job[away].position is None
    assert "the next one may begin at" in by_job[again].reason
    expected = [600.0, 660.0, 720.0]
    waits = [by_job[job_id].starts_at for job_id in (theirs, *ours)]
    assert all(at is not None for at in waits)
    for at, seconds in zip(waits, expected, strict=True):
        assert at is not None and abs((at - datetime.now(UTC)).total_seconds() - seconds) < 30


def test_nobody_is_told_a_time_while_nobody_knows_how_long_what_runs_will_take(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=1)
    make_job(acme)
    admit(system_engine)
    waiting = make_job(acme, expected_s=60.0)
    assert places(system_engine)[waiting].starts_at is None


def test_a_job_that_no_longer_waits_has_no_place(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    made = make_job(acme)
    assert list(places(system_engine)) == [made]
    make_agent(slots=1)
    admit(system_engine)
    assert places(system_engine) == {}


def test_a_job_that_was_admitted_to_a_cluster_whose_agents_are_gone_is_queued_again(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(slots=2)
    make_agent(cluster="elsewhere", slots=1)
    lost, kept, fresh = make_job(acme), make_job(acme, cluster="elsewhere"), make_job(acme)
    assert len(admit(system_engine)) == 3
    execute(system_engine, "UPDATE jobs SET admitted_at = now() - interval '1 minute' WHERE id <> :id", id=fresh)
    with system_session(system_engine) as session:
        assert withdraw(session, agent_lost_after_s=30) == []
    execute(system_engine, "UPDATE agents SET seen_at = now() - interval '1 minute' WHERE cluster = 'default'")
    with system_session(system_engine) as session:
        assert withdraw(session, agent_lost_after_s=30) == [lost]
        states = [jobs.get_job(session, job_id).state for job_id in (lost, kept, fresh)]
    assert states == ["queued", "admitted", "admitted"]
    assert "No agent of cluster 'default' is alive" in places(system_engine)[lost].reason
