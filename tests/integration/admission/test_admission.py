"""Admission on real SQL: organisations share the workers of a cluster, and those who wait are told what for."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from claims import AGENT, admit_queued, claim_one
from sqlalchemy import Engine, func, select, text

from zhub.admission import admit as admission
from zhub.admission import budgets
from zhub.admission.fair_share import HALF_LIFE_S
from zhub.cli.database_operations import set_quota
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.errors import NotFoundError
from zhub.models import Attempt, QueuePlace, Quota, Usage
from zhub.queue import jobs
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


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
        found = claim_one(session, "train", free=8)
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
        with system_session(system_engine) as session:
            admit_queued(session)
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
        found = claim_one(session, "validate")
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
        more: Any = {"nominal_workers": 1.0, "monthly_worker_hours": 100.0}
        set_quota(database.system, "acme", weight=weight, max_workers=cap, max_queued=10, **more)
    with system_session(system_engine) as session:
        (quota,) = session.scalars(select(Quota))
        assert (quota.org_id, quota.weight, quota.max_workers, quota.max_queued) == (acme.org_id, 3.0, None, 10)
        assert (quota.nominal_workers, quota.monthly_worker_hours) == (1.0, 100.0)
    said = "acme: weight 3, 1 guaranteed workers of a cluster, any number of workers of it at most, 10 jobs waiting"
    assert f"{said}, 100 worker-hours a month." in capsys.readouterr().err


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
        assert admission.withdraw(session, agent_lost_after_s=30) == []
    execute(system_engine, "UPDATE agents SET seen_at = now() - interval '1 minute' WHERE cluster = 'default'")
    with system_session(system_engine) as session:
        assert admission.withdraw(session, agent_lost_after_s=30) == [lost]
        states = [jobs.get_job(session, job_id).state for job_id in (lost, kept, fresh)]
    assert states == ["queued", "admitted", "admitted"]
    assert "No agent of cluster 'default' is alive" in places(system_engine)[lost].reason


def validations(engine: Engine) -> dict[uuid.UUID, tuple[str, str]]:
    """State and cluster of each."""
    with system_session(engine) as session:
        found = session.execute(text("SELECT id, state, cluster FROM jobs WHERE kind = 'validate'"))
        return {row.id: (row.state, row.cluster) for row in found}


def test_a_file_is_validated_by_another_cluster_where_its_own_has_no_agent(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(cluster="h100")
    made = make_job(acme, kind="validate")
    with system_session(system_engine) as session:
        (admitted,) = admission.admit(session, agent_lost_after_s=30)
        assert (admitted.job_id, admitted.cluster) == (made, "h100")  # the agent that is woken
        claimed = claim_one(session, *jobs.LIGHT_KINDS, cluster="h100")
        assert claimed is not None and claimed.job_id == made


def test_a_file_is_validated_by_its_own_cluster_where_that_has_an_agent(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    for cluster in ("a10", "default"):
        make_agent(cluster=cluster)
    made = make_job(acme, kind="validate")
    admit(system_engine)
    assert validations(system_engine)[made] == ("admitted", "default")


def test_a_validation_whose_cluster_goes_away_is_done_by_another(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(cluster="a10")
    made = make_job(acme, kind="validate")
    admit(system_engine)
    execute(system_engine, "UPDATE jobs SET admitted_at = now() - interval '1 minute'")
    execute(system_engine, "UPDATE agents SET seen_at = now() - interval '1 minute'")
    make_agent(cluster="h100")
    with system_session(system_engine) as session:
        assert admission.withdraw(session, agent_lost_after_s=30) == [made]
    admit(system_engine)
    assert validations(system_engine)[made] == ("admitted", "h100")


def test_a_validation_waits_for_any_agent_and_is_told_so(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    made = make_job(acme, kind="validate")
    assert admit(system_engine) == []
    assert places(system_engine)[made].reason == (
        "No agent of cluster 'default' is alive: nothing runs there until one is started. Nor is one of any other "
        "cluster."
    )
    make_agent(cluster="h100")
    assert made not in places(system_engine)  # the next pass admits it
    assert admit(system_engine) == [made]


# What was borrowed is taken back


def running_for(engine: Engine, caller: Caller, make_job: MakeJob, count: int, **columns: Any) -> list[uuid.UUID]:
    """So many trainings that have run for an hour."""
    made = [make_job(caller, **columns) for _ in range(count)]
    admit(engine)
    for _ in made:
        claim(engine)
    execute(engine, "UPDATE jobs SET state = 'running' WHERE state = 'starting'")
    execute(engine, "UPDATE attempts SET created_at = now() - interval '1 hour'")
    return made


def wishes_of(engine: Engine, job_ids: list[uuid.UUID]) -> list[str]:
    with system_session(engine) as session:
        return [jobs.get_job(session, job_id).desired for job_id in job_ids]


def test_a_worker_that_was_lent_is_taken_back_and_goes_to_whose_it_is(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=2)
    give(system_engine, Quota(org_id=globex.org_id, nominal_workers=1))
    borrowers = running_for(system_engine, acme, make_job, 2)
    owed = make_job(globex)
    assert admit(system_engine) == []
    assert sorted(wishes_of(system_engine, borrowers)) == ["preempt", "run"]
    admit(system_engine)
    assert sorted(wishes_of(system_engine, borrowers)) == ["preempt", "run"], "one is enough"
    (victim,) = [job_id for job_id in borrowers if wishes_of(system_engine, [job_id]) == ["preempt"]]
    with system_session(system_engine) as session:
        assert jobs.stopped(session, victim, 1) == "queued"
        (attempt,) = session.scalars(select(Attempt).where(Attempt.job_id == victim))
        assert attempt.outcome == "preempted"
        job = jobs.get_job(session, victim)
        assert (job.desired, job.user_failures, job.infra_failures) == ("run", 0, 0)
    assert admit(system_engine) == [owed]


def test_what_an_organisation_holds_of_its_own_is_not_taken(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=2)
    give(system_engine, Quota(org_id=globex.org_id, nominal_workers=1))
    give(system_engine, Quota(org_id=acme.org_id, nominal_workers=2))
    own = running_for(system_engine, acme, make_job, 2)
    make_job(globex)
    admit(system_engine)
    assert wishes_of(system_engine, own) == ["run", "run"]


def test_a_job_that_was_preempted_often_is_left_alone_for_a_while(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=1)
    give(system_engine, Quota(org_id=globex.org_id, nominal_workers=1))
    (job_id,) = running_for(system_engine, acme, make_job, 1)
    for fence in range(1, admission.MAX_PREEMPTIONS + 1):
        past = {"job_id": job_id, "fence": 100 + fence, "agent_id": AGENT, "outcome": "preempted"}
        give(system_engine, Attempt(org_id=acme.org_id, ended_at=func.now(), created_at=func.now(), **past))
    execute(system_engine, "UPDATE attempts SET created_at = now() - interval '1 hour'")
    make_job(globex)
    admit(system_engine)
    assert wishes_of(system_engine, [job_id]) == ["run"]
    execute(system_engine, "UPDATE attempts SET ended_at = now() - interval '3 hours' WHERE ended_at IS NOT NULL")
    admit(system_engine)
    assert wishes_of(system_engine, [job_id]) == ["preempt"]


# Budgets


def test_a_budget_that_is_used_up_pauses_trainings_and_lets_none_begin(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=4)
    give(system_engine, Quota(org_id=acme.org_id, monthly_worker_hours=1.5))
    runs = running_for(system_engine, acme, make_job, 1)
    with system_session(system_engine) as session:
        assert budgets.pause_spent(session) == 0
    more = running_for(system_engine, acme, make_job, 1)
    with system_session(system_engine) as session:
        assert budgets.pause_spent(session) == 2
        assert budgets.pause_spent(session) == 0
    assert wishes_of(system_engine, [*runs, *more]) == ["pause", "pause"]
    waiting, theirs = make_job(acme), make_job(globex)
    assert admit(system_engine) == [theirs]
    assert "2 of the 1.5 worker-hours" in places(system_engine)[waiting].reason
    execute(system_engine, "UPDATE quotas SET monthly_worker_hours = 3")
    assert set(admit(system_engine)) == {theirs, waiting}


def test_a_budget_counts_what_has_ended_in_this_month_and_not_what_ended_before(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(slots=1)
    give(system_engine, Quota(org_id=acme.org_id, monthly_worker_hours=1.0))
    (job_id,) = running_for(system_engine, acme, make_job, 1)
    with system_session(system_engine) as session:
        jobs.fail(session, job_id, 1, jobs.Failure("x", "It broke."))
    # It began in the month before this one and ended two hours into this one.
    month = "date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    execute(
        system_engine,
        f"UPDATE attempts SET created_at = {month} - interval '5 h', ended_at = {month} + interval '2 h'",
    )
    with system_session(system_engine) as session:
        admission.charge(session)
        (found,) = budgets.spent(session).values()
    assert found.used_h == pytest.approx(2.0)
    execute(system_engine, "UPDATE month_usages SET month = month - interval '1 month'")
    with system_session(system_engine) as session:
        assert budgets.spent(session) == {}
