"""What a stale attempt may write to a job: nothing."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from job_moves import (
    WRONG,
    all_rows,
    cancel,
    claimed,
    execute,
    expire_leases,
    fail,
    heartbeat,
    job_row,
    lose,
    preempt,
    publish_version,
    readmit,
    reap,
    stopped,
    succeed,
)
from sqlalchemy import Engine

from zhub.errors import LeaseLostError
from zhub.queue.job_events import Event
from zhub.tenancy.keys import Caller

WRITES: dict[str, Callable[[Engine, uuid.UUID, int], Any]] = {
    "heartbeat": lambda engine, job_id, fence: heartbeat(
        engine, job_id, fence, events=[Event(1, "info", "message", "x")]
    ),
    "publish": publish_version,
    "succeed": succeed,
    "fail for a retry": fail,
    "fail for good": lambda engine, job_id, fence: fail(engine, job_id, fence, WRONG, "failed_user"),
    "stopped": stopped,
    "lose": lose,
}


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_lost_its_lease_to_another_writes_nothing(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], write: str
) -> None:
    job_id = admitted()
    stale = claimed(system_engine).fence
    expire_leases(system_engine)
    reap(system_engine)
    readmit(system_engine)
    claimed(system_engine)
    before = all_rows(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, stale)
    assert all_rows(system_engine) == before


def test_an_attempt_that_lost_its_lease_has_its_successor_preempted_by_nobody(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    stale = claimed(system_engine).fence
    expire_leases(system_engine)
    reap(system_engine)
    readmit(system_engine)
    claimed(system_engine)
    assert preempt(system_engine, job_id, stale) == "run"


@pytest.mark.parametrize("desired", ["pause", "cancel", "preempt"])
@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_lost_its_lease_does_not_stop_its_successor_on_request(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], write: str, desired: str
) -> None:
    job_id = admitted()
    stale = claimed(system_engine).fence
    expire_leases(system_engine)
    reap(system_engine)
    readmit(system_engine)
    claimed(system_engine)
    execute(system_engine, "UPDATE jobs SET desired = :desired", desired=desired)
    before = all_rows(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, stale)
    assert all_rows(system_engine) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_whose_job_was_reaped_writes_nothing(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], write: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    expire_leases(system_engine)
    reap(system_engine)
    before = all_rows(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, fence)
    assert all_rows(system_engine) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_fence_that_was_never_given_out_writes_nothing(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], write: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    before = all_rows(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, fence + 1)
    assert all_rows(system_engine) == before


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("write", WRITES)
def test_a_job_that_has_ended_does_not_change_any_more(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller, end: str, write: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    if end == "cancelled":
        cancel(api_engine, caller, job_id)
    {"succeeded": publish_version, "failed": WRITES["fail for good"], "cancelled": stopped}[end](
        system_engine, job_id, fence
    )
    before = all_rows(system_engine)
    assert job_row(system_engine, job_id).state == end
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, fence)
    assert all_rows(system_engine) == before


def test_a_late_worker_that_nobody_has_replaced_may_still_finish(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    expire_leases(system_engine)
    assert publish_version(system_engine, job_id, fence) == 1
