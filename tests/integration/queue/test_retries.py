"""Heartbeats and what follows a failure: whose budget pays, when the job is tried again, and what the reaper takes."""

import uuid
from collections.abc import Callable

import pytest
from job_moves import (
    LOST,
    WRONG,
    cancel,
    claimed,
    execute,
    expire_leases,
    fail,
    heartbeat,
    job_row,
    lose,
    messages,
    preempt,
    readmit,
    reap,
    stopped,
)
from sqlalchemy import Engine, func, select

from zhub.database.sessions import system_session
from zhub.datasets import files
from zhub.models import Attempt, BaseModel, DatasetVersion, Job, JobEvent
from zhub.queue import attempts, job_events, jobs
from zhub.queue.job_events import Event
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]

# Heartbeats


def test_the_first_heartbeat_makes_the_job_run(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    assert job_row(system_engine, job_id).state == "admitted"
    fence = claimed(system_engine).fence
    heartbeat(system_engine, job_id, fence)
    assert job_row(system_engine, job_id).state == "running"


def test_a_heartbeat_renews_the_lease(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    expire_leases(system_engine)
    heartbeat(system_engine, job_id, fence)
    assert reap(system_engine) == []


def test_a_heartbeat_tells_the_worker_that_its_job_was_cancelled(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    cancel(api_engine, caller, job_id)
    assert heartbeat(system_engine, job_id, fence) == "cancel"
    assert job_row(system_engine, job_id).state == "stopping"


def test_a_heartbeat_without_progress_leaves_the_time_of_the_last(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    before = job_row(system_engine, job_id).progress_at
    heartbeat(system_engine, job_id, fence, progressed=False)
    assert job_row(system_engine, job_id).progress_at == before


def test_an_event_that_is_reported_twice_is_stored_once(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    reported = [Event(n, "info", "metrics", f"step {n}", {"step": n}) for n in (1, 2, 3)]
    heartbeat(system_engine, job_id, fence, events=reported[:2])
    heartbeat(system_engine, job_id, fence, events=reported)
    with system_session(system_engine) as session:
        stored = session.scalars(
            select(JobEvent.message).where(JobEvent.seq.is_not(None)).order_by(JobEvent.position)
        ).all()
        assert job_events.last_seq(session, job_id, fence) == 3
    assert list(stored) == ["step 1", "step 2", "step 3"]


# Failures, budgets, back-off


@pytest.mark.parametrize(("asked_to_leave", "outcome", "paid"), [(True, "preempted", 0), (False, "lost", 1)])
def test_an_attempt_whose_worker_is_gone_pays_unless_it_had_been_asked_to_leave(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], asked_to_leave: bool, outcome: str, paid: int
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    if asked_to_leave:
        preempt(system_engine, job_id, fence)
    assert lose(system_engine, job_id, fence) == "queued"
    with system_session(system_engine) as session:
        job = jobs.get_job(session, job_id)
        ended = session.scalar(select(Attempt.outcome).where(Attempt.job_id == job_id))
        assert (ended, job.infra_failures, job.desired) == (outcome, paid, "run")


def test_a_lost_job_is_tried_again_later_and_later(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    waits = []
    for _ in range(attempts.MAX_INFRA_FAILURES):
        fence = claimed(system_engine).fence
        expire_leases(system_engine)
        assert reap(system_engine) == [(job_id, "queued")]
        with system_session(system_engine) as session:
            # Both are now() of the transaction that reaped.
            ended_at = session.scalars(select(Attempt.ended_at).where(Attempt.fence == fence)).one()
            not_before = session.scalars(select(Job.not_before)).one()
        assert ended_at is not None and not_before is not None
        waits.append((not_before - ended_at).total_seconds())
        readmit(system_engine)
    assert waits == [1, 2, 4, 8, 16]


def test_the_back_off_never_exceeds_a_minute(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted(infra_failures=4, user_failures=3)
    fail(system_engine, job_id, claimed(system_engine).fence)
    with system_session(system_engine) as session:
        wait_s = session.scalar(
            select(func.extract("epoch", Job.not_before - Attempt.ended_at)).join(Attempt, Attempt.job_id == Job.id)
        )
    assert wait_s == 60


def test_a_job_that_is_lost_too_often_fails_and_says_so(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted(infra_failures=attempts.MAX_INFRA_FAILURES)
    claimed(system_engine)
    expire_leases(system_engine)
    reap(system_engine)
    failed = job_row(system_engine, job_id)
    assert failed.state == "failed" and failed.error is not None and failed.error["code"] == "lost"


@pytest.mark.parametrize(
    ("outcome", "retries"),
    [
        ("failed_user", attempts.MAX_USER_FAILURES),
        ("failed_infra", attempts.MAX_INFRA_FAILURES),
        ("lost", attempts.MAX_INFRA_FAILURES),
    ],
)
def test_each_kind_of_failure_has_its_own_budget(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], outcome: str, retries: int
) -> None:
    job_id = admitted()
    states = []
    for _ in range(retries + 1):
        states.append(fail(system_engine, job_id, claimed(system_engine).fence, LOST, outcome))
        readmit(system_engine)
    assert states == ["queued"] * retries + ["failed"]


def test_a_failure_that_must_repeat_itself_is_not_retried(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    assert fail(system_engine, job_id, claimed(system_engine).fence, WRONG, "failed_user") == "failed"
    assert job_row(system_engine, job_id).error == {
        "code": "training_error",
        "message": "It cannot work.",
        "param": None,
    }


def test_a_retry_forgets_the_error(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    fail(system_engine, job_id, claimed(system_engine).fence)
    assert job_row(system_engine, job_id).error is None


@pytest.mark.parametrize(
    ("desired", "state", "afterwards"),
    [("cancel", "cancelled", "cancel"), ("pause", "paused", "pause"), ("preempt", "queued", "run")],
)
@pytest.mark.parametrize("how", ["fail", "reap", "stopped"])
def test_the_request_of_the_user_comes_before_the_retry(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], how: str, desired: str, state: str, afterwards: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    execute(system_engine, "UPDATE jobs SET desired = :desired", desired=desired)
    if how == "reap":
        expire_leases(system_engine)
        reap(system_engine)
    else:
        {"fail": fail, "stopped": stopped}[how](system_engine, job_id, fence)
    job = job_row(system_engine, job_id)
    assert (job.state, job.desired) == (state, afterwards)


def test_a_cancelled_job_ends_cancelled_even_when_its_budget_is_spent(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    cancel(api_engine, caller, job_id)
    fail(system_engine, job_id, fence, WRONG, "failed_user")
    job = job_row(system_engine, job_id)
    assert (job.state, job.error) == ("cancelled", None)


def test_the_reaper_leaves_live_leases_alone(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    admitted()
    claimed(system_engine)
    assert reap(system_engine) == []


def test_a_file_whose_validation_fails_for_good_says_so(
    system_engine: Engine, caller: Caller, make_job: MakeJob
) -> None:
    with system_session(system_engine) as session:
        version = files.register(
            session, caller, filename="sums.jsonl", purpose="fine-tune", size_bytes=1, sha256="0" * 64
        )
    readmit(system_engine)
    claim = claimed(system_engine)
    fail(system_engine, claim.job_id, claim.fence, WRONG, "failed_user")
    with system_session(system_engine) as session:
        dataset_version = session.scalars(select(DatasetVersion).where(DatasetVersion.id == version.id)).one()
    assert dataset_version.status == "error" and "It cannot work." in (dataset_version.status_details or "")


def test_a_base_model_whose_decomposition_is_lost_too_often_says_so(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], make_base_model: Callable[..., uuid.UUID]
) -> None:
    base_model_id = make_base_model("big", status="decomposing")
    admitted(kind="decompose", base_model_id=base_model_id, infra_failures=attempts.MAX_INFRA_FAILURES)
    claimed(system_engine)
    expire_leases(system_engine)
    reap(system_engine)
    with system_session(system_engine) as session:
        base_model = session.scalars(select(BaseModel).where(BaseModel.id == base_model_id)).one()
    assert base_model.status == "error" and base_model.error


def test_an_attempt_that_stopped_unasked_is_a_failure_with_a_back_off(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    heartbeat(system_engine, job_id, fence)
    assert stopped(system_engine, job_id, fence) == "queued"
    job = job_row(system_engine, job_id)
    assert job.not_before is not None and job.infra_failures == 1
    assert any("nobody had asked it" in message for message in messages(system_engine, job_id))
