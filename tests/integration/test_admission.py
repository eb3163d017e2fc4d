"""Admission on real SQL: organisations share the workers of a cluster, and those who wait are told what for."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text

from zhub import admission, jobs
from zhub.cli.database_process import set_quota
from zhub.db import system_session
from zhub.embedded.postgres import Urls
from zhub.errors import NotFoundError
from zhub.fair_share import HALF_LIFE_S
from zhub.models import Attempt, QueuePlace, Quota, Usage
from zhub.tenancy import Caller

MakeJob = Callable[..., uuid.UUID]
AGENT = uuid.UUID(int=1)


@pytest.fixture
def acme(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller("acme")


@pytest.fixture
def globex(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller("globex")


def admit(engine: Engine) -> list[uuid.UUID]:
    with system_session(engine) as session:
        admission.admit(session, agent_lost_after_s=30)
        return list(session.scalars(text("SELECT id FROM jobs WHERE state = 'admitted' ORDER BY admitted_at, id")))


def execute(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def give(engine: Engine, row: Any) -> None:
    with system_session(engine) as session:
        session.add(row)


def claim(engine: Engine) -> jobs.Claim:
    with system_session(engine) as session:
        found = jobs.claim(session, AGENT, "default", ["train"], lease_s=60)
    assert found is not None
    return found


def places(engine: Engine) -> dict[uuid.UUID, QueuePlace]:
    with system_session(engine) as session:
        admission.explain(session, agent_lost_after_s=30)
    with system_session(engine) as session:
        return {place.job_id: place for place in session.scalars(select(QueuePlace))}


def test_a_flood_of_one_organisation_does_not_keep_another_waiting(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=4)
    flood = [make_job(acme) for _ in range(10)]
    late = [make_job(globex) for _ in range(10)]
    assert set(admit(system_engine)) == {*flood[:2], *late[:2]}


def test_a_weight_is_a_larger_share(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=6)
    give(system_engine, Quota(org_id=globex.org_id, weight=2.0))
    ours, theirs = ([make_job(caller) for _ in range(6)] for caller in (acme, globex))
    assert set(admit(system_engine)) == {*ours[:2], *theirs[:4]}


def test_what_was_used_counts_half_a_day_later(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    give(system_engine, Usage(org_id=acme.org_id, cluster="default", worker_seconds=1000.0))
    give(system_engine, Usage(org_id=globex.org_id, cluster="default", worker_seconds=1500.0))
    execute(
        system_engine,
        "UPDATE usages SET at = now() - make_interval(secs => :s) WHERE org_id = :org",
        s=HALF_LIFE_S,
        org=globex.org_id,
    )
    make_job(acme)
    theirs = make_job(globex)
    assert admit(system_engine) == [theirs]


def test_usage_of_another_cluster_does_not_count(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    give(system_engine, Usage(org_id=acme.org_id, cluster="elsewhere", worker_seconds=1e6))
    give(system_engine, Usage(org_id=globex.org_id, cluster="default", worker_seconds=1.0))
    ours = make_job(acme)
    make_job(globex)
    assert admit(system_engine) == [ours]


def test_an_attempt_that_ends_is_charged_by_its_time_and_what_it_took(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=2)
    execute(system_engine, "UPDATE agents SET id = :id, jobs_per_worker = 4", id=AGENT)
    for columns in ({"pack_key": "basis"}, {"workers": 2}):
        make_job(acme, **columns)
        execute(system_engine, "UPDATE jobs SET state = 'admitted', admitted_at = now() WHERE state = 'queued'")
        found = claim(system_engine)
        execute(system_engine, "UPDATE attempts SET created_at = now() - interval '100 seconds' WHERE ended_at IS NULL")
        with system_session(system_engine) as session:
            jobs.fail(session, found.job_id, found.fence, jobs.Failure("x", "x"))
    for _ in range(2):  # once is enough
        with system_session(system_engine) as session:
            admission.charge(session)
    with system_session(system_engine) as session:
        assert list(session.scalars(select(Attempt.workers).order_by(Attempt.created_at, Attempt.workers))) == [0.25, 2]
        (used,) = session.scalars(select(Usage.worker_seconds))
    assert used == pytest.approx(25 + 200, abs=1)


def test_a_validation_is_not_charged(system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller) -> None:
    make_agent(slots=1)
    make_job(acme, kind="validate")
    admit(system_engine)
    with system_session(system_engine) as session:
        found = jobs.claim(session, AGENT, "default", ["validate"], lease_s=60)
        assert found is not None
        jobs.fail(session, found.job_id, found.fence, jobs.Failure("x", "x"))
        admission.charge(session)
        assert session.scalar(select(func.count()).select_from(Usage)) == 0


def test_no_organisation_holds_more_than_its_quota(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=4)
    give(system_engine, Quota(org_id=acme.org_id, max_workers=2.0))
    made = [make_job(acme) for _ in range(4)]
    assert admit(system_engine) == made[:2]
    assert "its quota is 2 workers" in places(system_engine)[made[2]].reason


def test_a_job_that_is_larger_than_its_organisations_quota_is_told_that_it_cannot_run(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    make_agent(slots=4)
    give(system_engine, Quota(org_id=acme.org_id, max_workers=2.0))
    made = make_job(acme, workers=3)
    assert admit(system_engine) == []
    assert "cannot run unless the platform's operator allows more" in places(system_engine)[made].reason


def test_an_operator_sets_a_quota_by_the_organisations_name(
    system_engine: Engine, database: Urls, acme: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    for weight, cap in ((2.0, 4.0), (3.0, None)):
        set_quota(database.system, "acme", weight=weight, max_workers=cap, max_queued=10)
    with system_session(system_engine) as session:
        (quota,) = session.scalars(select(Quota))
        assert (quota.org_id, quota.weight, quota.max_workers, quota.max_queued) == (acme.org_id, 3.0, None, 10)
    assert "acme: weight 3, any number of workers in a cluster, 10 jobs waiting" in capsys.readouterr().err


def test_a_quota_for_nobody_is_refused(database: Urls) -> None:
    with pytest.raises(NotFoundError, match="No such organization: 'umbrella'"):
        set_quota(database.system, "umbrella", weight=1.0, max_workers=None, max_queued=None)


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
    found = places(system_engine)
    assert (found[large].position, found[small].position) == (1, 2)
    assert "It is next. It needs 2 workers, and 1 of 2 workers free" in found[large].reason


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
    found = places(system_engine)
    assert [found[job_id].position for job_id in (old, urgent, middle)] == [1, 2, 3]


def test_everybody_who_waits_is_told_what_for(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    running = make_job(acme, expected_s=600.0)
    admit(system_engine)
    ours, theirs = [make_job(acme, expected_s=60.0) for _ in range(2)], make_job(globex, expected_s=60.0)
    away = make_job(acme, cluster="nowhere")
    again = make_job(acme, not_before=func.now() + text("interval '1 hour'"))
    found = places(system_engine)
    assert running not in found
    assert [found[job_id].position for job_id in (theirs, *ours)] == [1, 2, 3]
    assert found[theirs].reason.startswith("It is next. It needs 1 worker, and 0 of 1 worker free")
    assert found[ours[0]].reason == "1 job is served before it: 1 of others'."
    assert found[ours[1]].reason == "2 jobs are served before it: 1 of your organisation's and 1 of others'."
    assert "No agent of cluster 'nowhere' is alive" in found[away].reason and found[away].position is None
    assert "the next one may begin at" in found[again].reason
    expected = [600.0, 660.0, 720.0]
    waits = [found[job_id].starts_at for job_id in (theirs, *ours)]
    assert all(at is not None for at in waits)
    for at, seconds in zip(waits, expected, strict=True):
        assert at is not None and abs((at - datetime.now(UTC)).total_seconds() - seconds) < 30


def test_a_job_that_no_longer_waits_has_no_place(
    system_engine: Engine, make_agent: Any, make_job: MakeJob, acme: Caller
) -> None:
    made = make_job(acme)
    assert list(places(system_engine)) == [made]
    make_agent(slots=1)
    admit(system_engine)
    assert places(system_engine) == {}
