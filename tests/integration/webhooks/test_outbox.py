"""Which events are written into the outbox, in the transaction of what they tell."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text, update
from suites import manifest_of
from webhook_receivers import SUCCEEDED

from zhub.database.sessions import system_session
from zhub.ids import public_id
from zhub.kinds import table
from zhub.models import Evaluation, Job
from zhub.queue import attempts, dependencies, jobs
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes, request_cancel, request_pause
from zhub.queue.reaper import reap
from zhub.registry.publish import publish
from zhub.tenancy.keys import Caller
from zhub.webhooks import endpoints

MakeJob = Callable[..., uuid.UUID]
MakeCaller = Callable[..., Caller]
MakeEndpoint = Callable[..., uuid.UUID]


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled", "paused"])
def test_the_end_of_a_training_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any], how: str,
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        desired = {"cancelled": "cancel", "paused": "pause"}.get(how)
        if how == "failed":
            attempts.fail(session, job_id, fence, attempts.Failure("x", "It failed."))
        elif how == "succeeded":
            attempts.succeed(session, job_id, fence)
        else:
            session.execute(update(Job).where(Job.id == job_id).values(desired=desired))
            attempts.stopped(session, job_id, fence)
    assert events() == [(f"fine_tuning.job.{how}", public_id("fine-tuning job", job_id))]


def test_a_job_that_is_tried_again_has_not_ended(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.fail(session, job_id, fence, attempts.Failure("x", "It failed.", retryable=True))
    assert events() == []


@pytest.mark.parametrize(("request_it", "state"), [(request_cancel, "cancelled"), (request_pause, "paused")])
def test_what_the_leader_settles_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint, events: Callable[[], Any],
    request_it: Callable[..., Job], state: str,
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    with system_session(system_engine) as session:
        request_it(session, job_id)
        apply_requested_changes(session)
    assert events() == [(f"fine_tuning.job.{state}", public_id("fine-tuning job", job_id))]


def test_a_job_that_is_cancelled_with_what_it_needs_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    needed, waiting = make_job(caller), make_job(caller, state="waiting")
    with system_session(system_engine) as session:
        dependencies.add(session, jobs.get_job(session, waiting), [needed])
    fence = start(needed)
    with system_session(system_engine) as session:
        attempts.fail(session, needed, fence, attempts.Failure("x", "It failed."))
        release_dependents(session, table.names())
    assert events() == [
        ("fine_tuning.job.failed", public_id("fine-tuning job", needed)),
        ("fine_tuning.job.cancelled", public_id("fine-tuning job", waiting)),
    ]


def test_a_job_that_was_lost_too_often_is_in_the_outbox(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller, infra_failures=attempts.MAX_INFRA_FAILURES)
    start(job_id)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE jobs SET lease_until = now() - interval '1 second'"))
        reap(session)
    assert events() == [("fine_tuning.job.failed", public_id("fine-tuning job", job_id))]


def test_a_publication_is_in_the_outbox_beside_its_jobs_end(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        publish(session, job_id, fence, manifest_of(job_id, fence=fence), "t/x", 7)
    published = (endpoints.PUBLISHED, "main.summer@v1")
    assert sorted(events()) == [published, (SUCCEEDED, public_id("fine-tuning job", job_id))]


def test_an_evaluation_is_told_by_its_own_id(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    make_base_model: Callable[..., uuid.UUID], start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller, kind="evaluate")
    with system_session(system_engine) as session:
        within = {"org_id": caller.org_id, "project_id": caller.project_id, "base_model_id": make_base_model()}
        made = Evaluation(job_id=job_id, suite_digest="d", suite={}, **within)
        session.add(made)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.succeed(session, job_id, fence)
    assert events() == [("evaluation.succeeded", public_id("evaluation", made.id))]


def test_a_change_that_is_rolled_back_is_not_told(
    system_engine: Engine, caller: Caller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint()
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.succeed(session, job_id, fence)
        session.rollback()
    assert events() == []


def test_nothing_is_written_where_nobody_subscribed(
    system_engine: Engine, caller: Caller, make_caller: MakeCaller, make_job: MakeJob, make_endpoint: MakeEndpoint,
    start: Callable[[uuid.UUID], int], events: Callable[[], Any],
) -> None:  # fmt: skip
    make_endpoint(["fine_tuning.job.failed"])
    make_endpoint(owner=make_caller("acme", "other"))
    make_endpoint(owner=make_caller("globex"))
    job_id = make_job(caller)
    fence = start(job_id)
    with system_session(system_engine) as session:
        attempts.succeed(session, job_id, fence)
    assert events() == []
