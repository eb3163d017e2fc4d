"""Checkpoints from the worker's report to the sweep: kept by policy, gone on from, deleted without a dangling row."""

import io
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from checkpoint_reports import claim_again, count_rows, live_steps, report, report_of
from sqlalchemy import Engine, func, select, text

from zhub import scheduler
from zhub.database.sessions import system_session, tenant_session
from zhub.errors import ConflictError, LeaseLostError, NotFoundError, StoreError
from zhub.models import Checkpoint, JobEvent
from zhub.queue import attempts, checkpoints, job_events, jobs
from zhub.queue.checkpoints import KEEP_CHECKPOINTS
from zhub.queue.claims import Claim
from zhub.queue.job_events import Event
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import checkpoints_prefix
from zhub.tenancy.keys import Caller

FILES = ("manifest.json", "state.safetensors", "z.safetensors")


def put(store: DirectoryStore, claim: Claim, *steps: int) -> None:
    for step in steps:
        for name in FILES:
            store.put(f"{report_of(claim, step)['key_prefix']}/{name}", io.BytesIO(b"bytes"))


def end(engine: Engine, claim: Claim) -> None:
    with system_session(engine) as session:
        attempts.fail(session, claim.job_id, claim.fence, attempts.Failure("x", "x"), outcome="failed_user")


def lose(engine: Engine, claim: Claim) -> None:
    lost = attempts.Failure("lost", "x", retryable=True)
    with system_session(engine) as session:
        attempts.fail(session, claim.job_id, claim.fence, lost, outcome="lost")


# Reports


def test_a_job_keeps_its_newest_checkpoints(system_engine: Engine, claim: Claim) -> None:
    report(system_engine, claim, 10, 20, 30, 40, 50)
    assert live_steps(system_engine) == [30, 40, 50] and KEEP_CHECKPOINTS == 3


def test_the_policy_of_one_job_leaves_those_of_another_alone(
    system_engine: Engine, claim: Claim, make_job: Callable[..., uuid.UUID], caller: Caller
) -> None:
    report(system_engine, claim, 1, 2)
    make_job(caller, state="admitted", admitted_at=func.now())
    report(system_engine, claim_again(system_engine), 3, 4, 5, 6)
    assert live_steps(system_engine) == [1, 2, 4, 5, 6]


def test_a_checkpoint_reported_again_by_a_repeated_poll_is_one(system_engine: Engine, claim: Claim) -> None:
    for _ in range(2):
        report(system_engine, claim, 10, 20)
    assert live_steps(system_engine) == [10, 20]


def test_a_checkpoint_reported_again_after_it_was_swept_does_not_come_back(
    system_engine: Engine, claim: Claim, store: DirectoryStore
) -> None:
    report(system_engine, claim, 10, 20, 30, 40)
    checkpoints.sweep(system_engine, store, after=timedelta())
    report(system_engine, claim, 10, 20, 30, 40)
    assert count_rows(system_engine) == KEEP_CHECKPOINTS


def test_a_checkpoint_and_its_event_are_stored_together_or_not_at_all(system_engine: Engine, claim: Claim) -> None:
    with system_session(system_engine) as session:
        job_events.store(
            session,
            claim.org_id,
            claim.job_id,
            claim.fence,
            [Event(1, "info", "message", "x", report_of(claim, 5))],
        )
        session.rollback()
    with system_session(system_engine) as session:
        events = session.scalar(select(func.count()).select_from(JobEvent).where(JobEvent.seq.is_not(None)))
    assert (events, count_rows(system_engine)) == (0, 0)


def test_an_attempt_that_lost_its_lease_leaves_no_checkpoint(system_engine: Engine, claim: Claim) -> None:
    lose(system_engine, claim)
    with pytest.raises(LeaseLostError):
        report(system_engine, claim, 10)
    assert count_rows(system_engine) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"key_prefix": ""},
        {"key_prefix": "t"},
        {"key_prefix": f"t/{'0' * 32}/jobs/{'0' * 32}/checkpoints/000001"},
        {"digest": "short"},
        {"step": -1},
        {"z": {"name": "z.safetensors"}},
        {"metrics": {"loss": "low"}},
    ],
)
def test_a_report_that_cannot_be_right_is_refused(system_engine: Engine, claim: Claim, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        report(system_engine, claim, 1, **changed)
    assert count_rows(system_engine) == 0


def test_a_checkpoint_may_not_reach_out_of_its_job(system_engine: Engine, claim: Claim) -> None:
    prefix = f"{checkpoints_prefix(claim.org_id, claim.job_id)}/../../other"
    with pytest.raises(ValueError, match="not within its job"):
        report(system_engine, claim, 1, key_prefix=prefix)


# Going on


def test_the_first_attempt_begins_without_a_checkpoint(claim: Claim) -> None:
    assert claim.checkpoint is None


def test_the_next_attempt_gets_the_newest_checkpoint(system_engine: Engine, claim: Claim) -> None:
    report(system_engine, claim, 10, 20)
    lose(system_engine, claim)
    wanted = report_of(claim, 20)
    assert claim_again(system_engine).checkpoint == {name: wanted[name] for name in ("key_prefix", "digest", "step")}


def test_a_deleted_checkpoint_is_not_gone_on_from(system_engine: Engine, claim: Claim) -> None:
    report(system_engine, claim, 10, 20)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE checkpoints SET deleted_at = now() WHERE step = 20"))
    lose(system_engine, claim)
    checkpoint = claim_again(system_engine).checkpoint
    assert checkpoint is not None and checkpoint["step"] == 10


# Deleting and sweeping


def ids(engine: Engine) -> dict[int, uuid.UUID]:
    with system_session(engine) as session:
        return {row.step: row.id for row in session.execute(select(Checkpoint.step, Checkpoint.id))}


def delete(engine: Engine, caller: Caller, claim: Claim, checkpoint_id: uuid.UUID) -> None:
    with tenant_session(engine, caller.org_id) as session:
        checkpoints.delete_checkpoint(session, jobs.get_job(session, claim.job_id), checkpoint_id)


def test_the_newest_checkpoint_of_a_job_that_has_not_ended_stays(
    system_engine: Engine, api_engine: Engine, claim: Claim, caller: Caller
) -> None:
    report(system_engine, claim, 10, 20)
    ids_by_step = ids(system_engine)
    with pytest.raises(ConflictError, match="go on from it"):
        delete(api_engine, caller, claim, ids_by_step[20])
    delete(api_engine, caller, claim, ids_by_step[10])
    assert live_steps(system_engine) == [20]


def test_every_checkpoint_of_a_job_that_has_ended_can_be_deleted(
    system_engine: Engine, api_engine: Engine, claim: Claim, caller: Caller
) -> None:
    report(system_engine, claim, 10, 20)
    end(system_engine, claim)
    for checkpoint_id in ids(system_engine).values():
        delete(api_engine, caller, claim, checkpoint_id)
    assert live_steps(system_engine) == []


def test_deleting_twice_is_not_found(system_engine: Engine, api_engine: Engine, claim: Claim, caller: Caller) -> None:
    report(system_engine, claim, 10, 20)
    ids_by_step = ids(system_engine)
    delete(api_engine, caller, claim, ids_by_step[10])
    with pytest.raises(NotFoundError):
        delete(api_engine, caller, claim, ids_by_step[10])


def test_a_sweep_removes_the_bytes_and_rows_of_what_was_deleted_and_nothing_else(
    system_engine: Engine, claim: Claim, store: DirectoryStore
) -> None:
    put(store, claim, 10, 20, 30, 40)
    report(system_engine, claim, 10, 20, 30, 40)
    assert checkpoints.sweep(system_engine, store, after=timedelta()) == 1
    left = {int(key.split("/")[-2]) for key in store.keys("t/")}
    assert (left, count_rows(system_engine)) == ({20, 30, 40}, 3)


def test_what_was_deleted_a_moment_ago_may_still_be_read(
    system_engine: Engine, claim: Claim, store: DirectoryStore
) -> None:
    put(store, claim, 10, 20, 30, 40)
    report(system_engine, claim, 10, 20, 30, 40)
    assert checkpoints.sweep(system_engine, store) == 0
    assert len(list(store.keys("t/"))) == 4 * len(FILES)


class Breaks(DirectoryStore):
    """A store that fails in the middle of a deletion."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.left = 1

    def delete(self, key: str) -> None:
        if self.left == 0:
            raise StoreError("away", key=key)
        self.left -= 1
        super().delete(key)


def test_a_sweep_that_breaks_leaves_the_row_so_that_the_next_one_finishes(
    system_engine: Engine, claim: Claim, store: DirectoryStore
) -> None:
    put(store, claim, 10, 20, 30, 40)
    report(system_engine, claim, 10, 20, 30, 40)
    assert checkpoints.sweep(system_engine, Breaks(store.root), after=timedelta()) == 0
    assert (live_steps(system_engine), count_rows(system_engine)) == ([20, 30, 40], 4)
    assert checkpoints.sweep(system_engine, store, after=timedelta()) == 1
    assert len(list(store.keys("t/"))) == 3 * len(FILES)


def test_the_scheduler_sweeps_beside_its_passes_until_it_stops(
    system_engine: Engine, claim: Claim, store: DirectoryStore, until: Callable[..., Any]
) -> None:
    put(store, claim, 10, 20, 30, 40)
    report(system_engine, claim, 10, 20, 30, 40)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE checkpoints SET deleted_at = now() - interval '1 hour' WHERE step = 10"))
    stopping = threading.Event()
    thread = threading.Thread(target=scheduler.sweep, args=(system_engine, store, stopping))
    thread.start()
    try:
        until(lambda: count_rows(system_engine) == 3)
    finally:
        stopping.set()
        thread.join(timeout=15)
    assert not thread.is_alive()
