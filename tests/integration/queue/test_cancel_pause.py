"""The changes that users request of a job: cancel, pause and resume, also during a publication or another request."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from job_moves import (
    all_rows,
    apply_changes,
    cancel,
    claimed,
    execute,
    fail,
    heartbeat,
    job_row,
    messages,
    pause,
    preempt,
    publish_version,
    resume,
    stopped,
    wait_until_blocked,
)
from sqlalchemy import Engine, func
from suites import manifest_of

from zhub.database.sessions import system_session, tenant_session
from zhub.errors import ConflictError, LeaseLostError
from zhub.queue.desired import apply_requested_changes, request_cancel
from zhub.registry.publish import publish
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


@pytest.mark.parametrize("desired", ["pause", "cancel"])
def test_a_requested_change_is_not_replaced_by_a_preemption(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], desired: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    execute(system_engine, "UPDATE jobs SET desired = :desired WHERE id = :id", desired=desired, id=job_id)
    assert preempt(system_engine, job_id, fence) == desired


def test_a_cancellation_that_was_accepted_wins_over_a_result(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    cancel(api_engine, caller, job_id)
    before = all_rows(system_engine)
    with pytest.raises(LeaseLostError):
        publish_version(system_engine, job_id, fence)
    assert all_rows(system_engine) == before


def test_a_published_job_can_no_longer_be_cancelled(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    publish_version(system_engine, job_id, claimed(system_engine).fence)
    before = all_rows(system_engine)
    with pytest.raises(ConflictError):
        cancel(api_engine, caller, job_id)
    assert all_rows(system_engine) == before


def test_cancelling_twice_is_no_error_and_one_event(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    claimed(system_engine)
    cancel(api_engine, caller, job_id)
    before = all_rows(system_engine)
    cancel(api_engine, caller, job_id)
    assert all_rows(system_engine) == before


def test_a_cancellation_that_meets_a_publication_in_flight_waits_and_is_refused(
    system_engine: Engine,
    api_engine: Engine,
    admitted: Callable[..., uuid.UUID],
    caller: Caller,
    until: Callable[..., Any],
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    with ThreadPoolExecutor(1) as pool:
        with system_session(system_engine) as session:
            publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
            cancelling = pool.submit(cancel, api_engine, caller, job_id)
            wait_until_blocked(system_engine, until)
        with pytest.raises(ConflictError):
            cancelling.result(timeout=10)
    assert job_row(system_engine, job_id).state == "succeeded"


def test_a_publication_that_meets_a_cancellation_in_flight_waits_and_is_refused(
    system_engine: Engine,
    api_engine: Engine,
    admitted: Callable[..., uuid.UUID],
    caller: Caller,
    until: Callable[..., Any],
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    with ThreadPoolExecutor(1) as pool:
        with tenant_session(api_engine, caller.org_id) as session:
            request_cancel(session, job_id)
            publishing = pool.submit(publish_version, system_engine, job_id, fence)
            wait_until_blocked(system_engine, until)
        with pytest.raises(LeaseLostError):
            publishing.result(timeout=10)
    assert stopped(system_engine, job_id, fence) == "cancelled"


@pytest.mark.parametrize("state", ["queued", "admitted"])
def test_a_job_without_an_attempt_is_paused_and_resumed_by_the_leader(
    system_engine: Engine, api_engine: Engine, make_job: MakeJob, caller: Caller, state: str
) -> None:
    job_id = make_job(caller, state=state)
    pause(api_engine, caller, job_id)
    apply_changes(system_engine)
    assert job_row(system_engine, job_id).state == "paused"
    resume(api_engine, caller, job_id)
    apply_changes(system_engine)
    assert job_row(system_engine, job_id).state == "queued"
    told = ["Pause requested.", "The job is paused.", "Resumption requested.", "The job is queued."]
    assert messages(system_engine, job_id) == ["Enqueued.", *told]


def test_a_resumed_job_waits_for_no_back_off(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fail(system_engine, job_id, claimed(system_engine).fence)
    pause(api_engine, caller, job_id)
    apply_changes(system_engine)
    resume(api_engine, caller, job_id)
    apply_changes(system_engine)
    job = job_row(system_engine, job_id)
    assert (job.state, job.not_before) == ("queued", None)


@pytest.mark.parametrize("request_change", [pause, resume])
def test_requesting_a_change_twice_is_no_error_and_one_event(
    system_engine: Engine,
    api_engine: Engine,
    make_job: MakeJob,
    caller: Caller,
    request_change: Callable[[Engine, Caller, uuid.UUID], str],
) -> None:
    job_id = make_job(caller, **({} if request_change is pause else {"state": "paused", "desired": "pause"}))
    request_change(api_engine, caller, job_id)
    before = all_rows(system_engine)
    request_change(api_engine, caller, job_id)
    assert all_rows(system_engine) == before


@pytest.mark.parametrize("request_change", [pause, resume])
@pytest.mark.parametrize(
    ("end", "why"), [("succeeded", "already succeeded"), ("failed", "already failed"), ("cancelled", "been cancelled")]
)
def test_a_job_that_has_ended_is_neither_paused_nor_resumed(
    system_engine: Engine,
    api_engine: Engine,
    make_job: MakeJob,
    caller: Caller,
    request_change: Callable[[Engine, Caller, uuid.UUID], str],
    end: str,
    why: str,
) -> None:
    job_id = make_job(caller, state=end, finished_at=func.now())
    before = all_rows(system_engine)
    with pytest.raises(ConflictError, match=why):
        request_change(api_engine, caller, job_id)
    assert all_rows(system_engine) == before


@pytest.mark.parametrize("request_change", [pause, resume])
def test_a_cancellation_is_not_taken_back_by_another_request(
    system_engine: Engine,
    api_engine: Engine,
    admitted: Callable[..., uuid.UUID],
    caller: Caller,
    request_change: Callable[[Engine, Caller, uuid.UUID], str],
) -> None:
    job_id = admitted()
    claimed(system_engine)
    cancel(api_engine, caller, job_id)
    with pytest.raises(ConflictError, match="being cancelled"):
        request_change(api_engine, caller, job_id)
    assert job_row(system_engine, job_id).desired == "cancel"


def test_a_paused_job_can_be_cancelled(
    system_engine: Engine, api_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller, state="paused", desired="pause")
    cancel(api_engine, caller, job_id)
    apply_changes(system_engine)
    assert job_row(system_engine, job_id).state == "cancelled"


def test_a_pause_that_meets_a_publication_in_flight_waits_and_is_refused(
    system_engine: Engine,
    api_engine: Engine,
    admitted: Callable[..., uuid.UUID],
    caller: Caller,
    until: Callable[..., Any],
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    with ThreadPoolExecutor(1) as pool:
        with system_session(system_engine) as session:
            publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
            pausing = pool.submit(pause, api_engine, caller, job_id)
            wait_until_blocked(system_engine, until)
        with pytest.raises(ConflictError, match="already succeeded"):
            pausing.result(timeout=10)


def test_a_job_that_finishes_while_its_pause_is_wanted_has_succeeded(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    pause(api_engine, caller, job_id)
    publish_version(system_engine, job_id, fence)
    apply_changes(system_engine)
    assert job_row(system_engine, job_id).state == "succeeded"


def test_a_pause_and_a_cancellation_at_the_same_time_end_in_the_cancellation(
    system_engine: Engine,
    api_engine: Engine,
    admitted: Callable[..., uuid.UUID],
    caller: Caller,
    until: Callable[..., Any],
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    with ThreadPoolExecutor(1) as pool:
        with tenant_session(api_engine, caller.org_id) as session:
            request_cancel(session, job_id)
            pausing = pool.submit(pause, api_engine, caller, job_id)
            wait_until_blocked(system_engine, until)
        with pytest.raises(ConflictError, match="being cancelled"):
            pausing.result(timeout=10)
    assert stopped(system_engine, job_id, fence) == "cancelled"


def test_an_attempt_that_was_asked_to_stop_gives_back_a_job_that_is_wanted_again_at_once(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted(infra_failures=3)
    fence = claimed(system_engine).fence
    pause(api_engine, caller, job_id)
    heartbeat(system_engine, job_id, fence)
    resume(api_engine, caller, job_id)
    assert stopped(system_engine, job_id, fence) == "queued"
    job = job_row(system_engine, job_id)
    assert (job.not_before, job.infra_failures) == (None, 3)


def test_a_job_cancelled_before_it_began_is_settled_by_the_leader(
    system_engine: Engine, api_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller)
    cancel(api_engine, caller, job_id)
    with system_session(system_engine) as session:
        assert apply_requested_changes(session) == 1
    job = job_row(system_engine, job_id)
    assert job.state == "cancelled" and job.finished_at is not None
