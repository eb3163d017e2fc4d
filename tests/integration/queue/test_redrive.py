"""Redrive: dead jobs are queued again under the same fence with a new budget, and with them what died of them."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import openai
import pytest
from claims import claim_one
from sqlalchemy import Engine, select, text
from suites import GRADER

from zhub.cli.database_operations import redrive_jobs
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.errors import ConflictError, LeaseLostError
from zhub.kinds import outcomes, redrive, table
from zhub.kinds.redrive import DeadLetters, process_redrives
from zhub.models import BaseModel, DatasetVersion, Job, JobEvent
from zhub.queue import attempts, dependencies, invariants, jobs
from zhub.queue.attempts import Failure
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes, request_cancel
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def fail(engine: Engine, job_id: uuid.UUID, kind: str = "train", code: str = "x") -> int:
    """Let a job fail for good; the fence of its attempt."""
    with system_session(engine) as session:
        session.execute(text("UPDATE jobs SET state = 'admitted', admitted_at = now() WHERE id = :id"), {"id": job_id})
        claim = claim_one(session, kind)
        assert claim is not None and claim.job_id == job_id
        outcomes.record_failure(session, job_id, claim.fence, Failure(code, "It broke."))
        return claim.fence


def again(engine: Engine, job_id: uuid.UUID) -> Job:
    with system_session(engine) as session:
        redrive.request(session, jobs.get_job(session, job_id), by="somebody")
    with system_session(engine) as session:
        process_redrives(session)
        return jobs.get_job(session, job_id)


def test_a_failed_job_is_queued_again_with_a_new_budget_and_the_fence_it_had(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller)
    fence = fail(system_engine, job_id)
    job = again(system_engine, job_id)
    assert (job.state, job.fence, job.user_failures, job.error, job.finished_at) == ("queued", fence, 0, None, None)
    assert fail(system_engine, job_id) == fence + 1
    with pytest.raises(LeaseLostError), system_session(system_engine) as session:
        attempts.succeed(session, job_id, fence)
    with system_session(system_engine) as session:
        assert invariants.examine(session) == []


def test_it_is_written_down_who_did_it(system_engine: Engine, make_job: MakeJob, caller: Caller) -> None:
    job_id = make_job(caller)
    fail(system_engine, job_id)
    again(system_engine, job_id)
    with system_session(system_engine) as session:
        found = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.position)).all()
    asked, done = found[-2:]
    assert (asked.message, asked.data) == ("Redrive requested.", {"type": "redrive", "by": "somebody"})
    assert done.message == "The job is queued again."


def test_a_cancelled_job_is_queued_again_and_wanted(system_engine: Engine, make_job: MakeJob, caller: Caller) -> None:
    job_id = make_job(caller)
    with system_session(system_engine) as session:
        request_cancel(session, job_id)
        apply_requested_changes(session)
    job = again(system_engine, job_id)
    assert (job.state, job.desired) == ("queued", "run")


def test_a_cancellation_takes_back_a_redrive_that_has_not_happened_yet(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller)
    with system_session(system_engine) as session:
        request_cancel(session, job_id)
        apply_requested_changes(session)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET finished_at = finished_at - interval '1 hour'"))
        session.execute(text("UPDATE job_events SET created_at = created_at - interval '1 hour'"))
        redrive.request(session, jobs.get_job(session, job_id), by="somebody")
        request_cancel(session, job_id)
    with system_session(system_engine) as session:
        assert process_redrives(session) == 0
        assert jobs.get_job(session, job_id).state == "cancelled"
        newest = select(JobEvent.message).order_by(JobEvent.position.desc()).limit(2)
        assert list(session.scalars(newest)) == ["The redrive is withdrawn.", "Redrive requested."]
        assert invariants.examine(session) == []


@pytest.mark.parametrize("state", ["queued", "paused", "waiting"])
def test_a_job_that_has_not_ended_is_left_alone(
    system_engine: Engine, make_job: MakeJob, caller: Caller, state: str
) -> None:
    job_id = make_job(caller, state=state)
    with pytest.raises(ConflictError, match="has not ended"):
        again(system_engine, job_id)


def test_of_two_who_ask_at_once_one_is_told_that_it_happened(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller)
    fail(system_engine, job_id)
    again(system_engine, job_id)
    with pytest.raises(ConflictError, match="has not ended"):
        again(system_engine, job_id)


def test_what_waited_for_the_job_waits_again(system_engine: Engine, make_job: MakeJob, caller: Caller) -> None:
    first, second, third = make_job(caller), make_job(caller, state="waiting"), make_job(caller, state="waiting")
    with system_session(system_engine) as session:
        dependencies.add(session, jobs.get_job(session, second), [first])
        dependencies.add(session, jobs.get_job(session, third), [second])
    fail(system_engine, first)
    for _ in range(2):
        with system_session(system_engine) as session:
            release_dependents(session, table.names())
    with system_session(system_engine) as session:
        states = [jobs.get_job(session, job_id).state for job_id in (first, second, third)]
    assert states == ["failed", "cancelled", "cancelled"]
    again(system_engine, first)
    with system_session(system_engine) as session:
        release_dependents(session, table.names())
        states = [jobs.get_job(session, job_id).state for job_id in (first, second, third)]
    assert states == ["queued", "waiting", "waiting"]


def test_what_somebody_cancelled_stays_cancelled_when_what_it_waited_for_comes_back(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    first, second = make_job(caller), make_job(caller, state="waiting")
    with system_session(system_engine) as session:
        dependencies.add(session, jobs.get_job(session, second), [first])
        request_cancel(session, second)
        apply_requested_changes(session)
    fail(system_engine, first)
    again(system_engine, first)
    with system_session(system_engine) as session:
        assert jobs.get_job(session, second).state == "cancelled"


@pytest.mark.parametrize("state", ["queued", "admitted", "succeeded"])
def test_a_job_that_is_not_dead_is_not_redriven(
    system_engine: Engine, make_job: MakeJob, caller: Caller, state: str
) -> None:
    ended = text("now()") if state == "succeeded" else None
    job_id = make_job(caller, state=state, finished_at=ended)
    with system_session(system_engine) as session, pytest.raises(ConflictError):
        redrive.redrive(session, jobs.get_job(session, job_id))
    with system_session(system_engine) as session:
        assert jobs.get_job(session, job_id).state == state


def test_jobs_that_wait_for_each_other_may_be_asked_for_at_once(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    first, second = make_job(caller), make_job(caller, state="waiting")
    with system_session(system_engine) as session:
        dependencies.add(session, jobs.get_job(session, second), [first])
    fail(system_engine, first)
    with system_session(system_engine) as session:
        release_dependents(session, table.names())
        for job_id in (first, second):
            redrive.request(session, jobs.get_job(session, job_id), by="somebody")
    with system_session(system_engine) as session:
        process_redrives(session)
        states = [jobs.get_job(session, job_id).state for job_id in (first, second)]
    assert states == ["queued", "waiting"]


def test_a_redrive_that_has_become_impossible_is_declined_and_keeps_no_other_from_its_turn(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    gone, other = make_job(caller, kind="evaluate"), make_job(caller)
    fail(system_engine, gone, kind="evaluate")
    fail(system_engine, other)
    with system_session(system_engine) as session:
        for job_id in (gone, other):
            # As it was asked for while the evaluation still was this job's.
            jobs.get_job(session, job_id).desired = "redrive"
    for _ in range(2):
        with system_session(system_engine) as session:
            process_redrives(session)
    with system_session(system_engine) as session:
        assert [jobs.get_job(session, job_id).state for job_id in (gone, other)] == ["failed", "queued"]
        told = select(JobEvent.message).where(JobEvent.job_id == gone).order_by(JobEvent.position.desc()).limit(1)
        assert "asked for again since" in session.scalars(told).one()


def test_a_file_whose_check_failed_is_being_checked_again(
    system_engine: Engine, make_file: Callable[..., str], caller: Caller
) -> None:
    make_file(caller)
    with system_session(system_engine) as session:
        job_id = session.scalars(select(Job.id).where(Job.kind == "validate")).one()
    fail(system_engine, job_id, "validate")
    with system_session(system_engine) as session:
        assert session.scalars(select(DatasetVersion.status)).one() == "error"
    again(system_engine, job_id)
    with system_session(system_engine) as session:
        assert session.scalars(select(DatasetVersion.status)).one() == "uploaded"


def test_a_base_model_that_could_not_be_decomposed_is_being_decomposed_again(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller, kind="decompose")
    fail(system_engine, job_id, "decompose")
    again(system_engine, job_id)
    with system_session(system_engine) as session:
        assert session.scalars(select(BaseModel.status)).one() == "decomposing"


def test_an_evaluation_that_was_asked_for_again_is_not_run_twice(
    system_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    superseded = make_job(caller, kind="evaluate")
    fail(system_engine, superseded, "evaluate")
    with pytest.raises(ConflictError, match="asked for again"):
        again(system_engine, superseded)


def test_a_team_redrives_its_own_jobs(
    client: openai.OpenAI, suite_file: str, system_engine: Engine, open_client: Any, make_key: Any
) -> None:
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=suite_file, method=method)
    fail(system_engine, uuid.UUID(job.id.removeprefix("ftjob-")))
    path = f"/fine_tuning/jobs/{job.id}/redrive"
    with pytest.raises(openai.NotFoundError):
        open_client(make_key("globex")).post(path, cast_to=object)
    answer: Any = client.post(path, cast_to=object)
    assert answer["status"] == client.post(path, cast_to=object)["status"] == "queued"  # type: ignore[index]
    with system_session(system_engine) as session:
        assert process_redrives(session) == 1
    with pytest.raises(openai.ConflictError, match="only a job that failed"):
        client.post(path, cast_to=object)


def test_an_operator_lists_what_is_dead_before_it_is_redriven(
    system_engine: Engine,
    database: Urls,
    make_job: MakeJob,
    make_caller: Callable[..., Caller],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = make_caller(), make_caller("globex")
    lost, broken, elsewhere = make_job(ours), make_job(ours), make_job(theirs)
    for job_id, code in ((lost, "lost"), (broken, "x"), (elsewhere, "lost")):
        fail(system_engine, job_id, code=code)
    which = DeadLetters(organization="acme", code="lost", ended_within=timedelta(hours=1))
    redrive_jobs(database.system, which, do_it=False)
    listed = capsys.readouterr()
    assert str(lost) in listed.out and len(listed.out.splitlines()) == 1
    assert "Nothing was changed" in listed.err
    redrive_jobs(database.system, which, do_it=True)
    with system_session(system_engine) as session:
        process_redrives(session)
        states = [jobs.get_job(session, job_id).state for job_id in (lost, broken, elsewhere)]
    assert states == ["queued", "failed", "failed"]


# Keys that one live job has at a time


@pytest.fixture
def train(client: openai.OpenAI, suite_file: str) -> Callable[..., Any]:
    def create(dedup_key: str | None, **options: Any) -> Any:
        method: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=suite_file, method=method, extra_body={"dedup_key": dedup_key}, **options
        )

    return create


def test_a_job_whose_key_another_live_one_has_is_not_made(train: Callable[..., Any], system_engine: Engine) -> None:
    first = train("nightly")
    assert train("nightly", seed=2).id == first.id
    assert train("another").id != first.id
    fail(system_engine, uuid.UUID(first.id.removeprefix("ftjob-")))
    second = train("nightly")
    assert (second.id != first.id, second.dedup_key) == (True, "nightly")


def test_of_requests_at_the_same_time_with_one_key_one_makes_a_job(
    train: Callable[..., Any], system_engine: Engine
) -> None:
    def ask(seed: int) -> str:
        return str(train("nightly", seed=seed).id)

    with ThreadPoolExecutor(6) as pool:
        made = {found for found in pool.map(lambda seed: _or_none(ask, seed), range(6)) if found}
    assert len(made) == 1
    with system_session(system_engine) as session:
        assert len(session.scalars(select(Job).where(Job.kind == "train")).all()) == 1


def _or_none(ask: Callable[[int], str], seed: int) -> str | None:
    try:
        return ask(seed)
    except openai.ConflictError:  # to be tried again
        return None


def test_a_dead_job_whose_key_a_live_one_has_stays_dead(
    train: Callable[..., Any], client: openai.OpenAI, system_engine: Engine
) -> None:
    dead = train("nightly")
    job_id = uuid.UUID(dead.id.removeprefix("ftjob-"))
    fail(system_engine, job_id)
    with system_session(system_engine) as session:
        redrive.request(session, jobs.get_job(session, job_id), by="somebody")
    live = train("nightly")
    with system_session(system_engine) as session:
        process_redrives(session)
        job = jobs.get_job(session, job_id)
        assert (job.state, job.desired) == ("failed", "run")
    with pytest.raises(openai.ConflictError, match=live.id):
        client.post(f"/fine_tuning/jobs/{dead.id}/redrive", cast_to=object)
