"""Checkpoints from the worker's report to the sweep: kept by policy, used as models, deleted without a dangling row."""

import io
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from claims import admit_queued, claim_one
from sqlalchemy import Engine, func, select, text

from zhub import scheduler
from zhub.database.sessions import system_session, tenant_session
from zhub.errors import ConflictError, LeaseLostError, NotFoundError, StoreError
from zhub.models import Checkpoint, JobEvent
from zhub.queue import attempts, checkpoints, job_events, jobs
from zhub.queue.checkpoints import KEEP_CHECKPOINTS
from zhub.queue.claims import Claim
from zhub.queue.job_events import Event
from zhub.registry import versions
from zhub.registry.resolve import resolve
from zhub.storage.directory import DirectoryStore
from zhub.storage.keys import checkpoints_prefix
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
FILES = ("manifest.json", "state.safetensors", "z.safetensors")


def report_of(claim: Claim, step: int, /, **changed: Any) -> dict[str, Any]:
    return {
        "type": "checkpoint",
        "step": step,
        "key_prefix": f"{checkpoints_prefix(claim.org_id, claim.job_id)}/{step:06d}",
        "digest": f"{step:064x}",
        "size_bytes": 100,
        "z": {"name": "z.safetensors", "size_bytes": 40, "sha256": "e" * 64},
        "metrics": {"valid_reward_mean": 0.5},
    } | changed


@pytest.fixture
def claim(system_engine: Engine, make_job: Callable[..., uuid.UUID], caller: Caller) -> Claim:
    """A training job under way."""
    make_job(caller, state="admitted", admitted_at=func.now())
    return claim_again(system_engine)


def claim_again(engine: Engine) -> Claim:
    with system_session(engine) as session:
        admit_queued(session)
        found = claim_one(session, "train")
    assert found is not None
    return found


def report(engine: Engine, claim: Claim, *steps: int, seq: int = 1, **changed: Any) -> None:
    """A heartbeat with one event for each checkpoint."""
    events = [Event(seq + n, "info", "message", "x", report_of(claim, step, **changed)) for n, step in enumerate(steps)]
    with system_session(engine) as session:
        attempts.heartbeat(session, claim.job_id, claim.fence, lease_s=60, progressed=True, events=events)


def live(engine: Engine) -> list[int]:
    with system_session(engine) as session:
        return list(
            session.scalars(select(Checkpoint.step).where(Checkpoint.deleted_at.is_(None)).order_by(Checkpoint.step))
        )


def rows(engine: Engine) -> int:
    with system_session(engine) as session:
        return session.scalar(select(func.count()).select_from(Checkpoint)) or 0


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
    assert live(system_engine) == [30, 40, 50] and KEEP_CHECKPOINTS == 3


def test_the_policy_of_one_job_leaves_those_of_another_alone(
    system_engine: Engine, claim: Claim, make_job: Callable[..., uuid.UUID], caller: Caller
) -> None:
    report(system_engine, claim, 1, 2)
    make_job(caller, state="admitted", admitted_at=func.now())
    report(system_engine, claim_again(system_engine), 3, 4, 5, 6)
    assert live(system_engine) == [1, 2, 4, 5, 6]


def test_a_checkpoint_reported_again_by_a_repeated_poll_is_one(system_engine: Engine, claim: Claim) -> None:
    for _ in range(2):
        report(system_engine, claim, 10, 20)
    assert live(system_engine) == [10, 20]


def test_a_checkpoint_reported_again_after_it_was_swept_does_not_come_back(
    system_engine: Engine, claim: Claim, store: DirectoryStore
) -> None:
    report(system_engine, claim, 10, 20, 30, 40)
    checkpoints.sweep(system_engine, store, after=timedelta())
    report(system_engine, claim, 10, 20, 30, 40)
    assert rows(system_engine) == KEEP_CHECKPOINTS


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
    assert (events, rows(system_engine)) == (0, 0)


def test_an_attempt_that_lost_its_lease_leaves_no_checkpoint(system_engine: Engine, claim: Claim) -> None:
    lose(system_engine, claim)
    with pytest.raises(LeaseLostError):
        report(system_engine, claim, 10)
    assert rows(system_engine) == 0


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
    assert rows(system_engine) == 0


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
    found = claim_again(system_engine).checkpoint
    assert found is not None and found["step"] == 10


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
    found = ids(system_engine)
    with pytest.raises(ConflictError, match="go on from it"):
        delete(api_engine, caller, claim, found[20])
    delete(api_engine, caller, claim, found[10])
    assert live(system_engine) == [20]


def test_every_checkpoint_of_a_job_that_has_ended_can_be_deleted(
    system_engine: Engine, api_engine: Engine, claim: Claim, caller: Caller
) -> None:
    report(system_engine, claim, 10, 20)
    end(system_engine, claim)
    for checkpoint_id in ids(system_engine).values():
        delete(api_engine, caller, claim, checkpoint_id)
    assert live(system_engine) == []


def test_deleting_twice_is_not_found(system_engine: Engine, api_engine: Engine, claim: Claim, caller: Caller) -> None:
    report(system_engine, claim, 10, 20)
    found = ids(system_engine)
    delete(api_engine, caller, claim, found[10])
    with pytest.raises(NotFoundError):
        delete(api_engine, caller, claim, found[10])


def test_a_sweep_removes_the_bytes_and_rows_of_what_was_deleted_and_nothing_else(
    system_engine: Engine, claim: Claim, store: DirectoryStore
) -> None:
    put(store, claim, 10, 20, 30, 40)
    report(system_engine, claim, 10, 20, 30, 40)
    assert checkpoints.sweep(system_engine, store, after=timedelta()) == 1
    left = {int(key.split("/")[-2]) for key in store.keys("t/")}
    assert (left, rows(system_engine)) == ({20, 30, 40}, 3)


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
    assert (live(system_engine), rows(system_engine)) == ([20, 30, 40], 4)
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
        until(lambda: rows(system_engine) == 3)
    finally:
        stopping.set()
        thread.join(timeout=15)
    assert not thread.is_alive()


# The API


@pytest.fixture
def job(claim: Claim) -> str:
    return f"ftjob-{claim.job_id.hex}"


def test_checkpoints_are_listed_newest_first_in_the_dialects_shape(
    system_engine: Engine, client: Client, claim: Claim, job: str
) -> None:
    report(system_engine, claim, 10, 20)
    found = list(client.fine_tuning.jobs.checkpoints.list(job))
    assert [one.step_number for one in found] == [20, 10]
    first = found[0]
    assert first.object == "fine_tuning.job.checkpoint" and first.id.startswith("ftckpt-")
    assert first.fine_tuning_job_id == job and first.metrics.step == 20
    assert first.metrics.to_dict()["valid_reward_mean"] == 0.5
    assert first.fine_tuned_model_checkpoint == f"main.summer@{job}:step-20"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_paging_through_checkpoints_meets_each_once(
    system_engine: Engine, client: Client, claim: Claim, job: str, limit: int
) -> None:
    report(system_engine, claim, 10, 20, 30)
    found = [one.step_number for one in client.fine_tuning.jobs.checkpoints.list(job, limit=limit)]
    assert found == [30, 20, 10]


def test_paging_after_an_unknown_checkpoint_is_refused(client: Client, job: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.checkpoints.list(job, after=f"ftckpt-{uuid.uuid4().hex}")


def test_a_checkpoint_is_deleted_through_the_api(system_engine: Engine, client: Client, claim: Claim, job: str) -> None:
    report(system_engine, claim, 10, 20)
    newest, older = client.fine_tuning.jobs.checkpoints.list(job)
    where = f"/fine_tuning/jobs/{job}/checkpoints"
    answer: Any = client.delete(f"{where}/{older.id}", cast_to=object)
    assert answer == {"id": older.id, "object": "fine_tuning.job.checkpoint", "deleted": True}
    with pytest.raises(openai.ConflictError, match="newest checkpoint"):
        client.delete(f"{where}/{newest.id}", cast_to=object)


@pytest.fixture
def stranger(open_client: Callable[..., Client], make_key: Callable[..., str]) -> Iterator[Client]:
    yield open_client(make_key("acme", "other"))


def test_another_project_sees_and_deletes_no_checkpoint(
    system_engine: Engine, client: Client, stranger: Client, claim: Claim, job: str
) -> None:
    report(system_engine, claim, 10, 20)
    (_newest, older) = client.fine_tuning.jobs.checkpoints.list(job)
    with pytest.raises(openai.NotFoundError):
        stranger.fine_tuning.jobs.checkpoints.list(job)
    with pytest.raises(openai.NotFoundError):
        stranger.delete(f"/fine_tuning/jobs/{job}/checkpoints/{older.id}", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        stranger.models.retrieve(older.fine_tuned_model_checkpoint)
    assert live(system_engine) == [10, 20]


# As a model


def test_a_checkpoint_resolves_to_its_own_z(system_engine: Engine, claim: Claim, caller: Caller) -> None:
    report(system_engine, claim, 10)
    name = f"main.summer@ftjob-{claim.job_id.hex}:step-10"
    with system_session(system_engine) as session:
        resolved = resolve(session, caller, name, [])
    (part,) = resolved.experts
    assert isinstance(part.record, versions.CheckpointRecord)
    assert (part.record.name, part.weight, resolved.base.name) == (name, 1.0, "tiny")
    assert part.record.checkpoint.key_prefix == report_of(claim, 10)["key_prefix"]


def test_a_mixture_may_hold_checkpoints(system_engine: Engine, claim: Claim, caller: Caller) -> None:
    report(system_engine, claim, 10, 20)
    names = [f"main.summer@ftjob-{claim.job_id.hex}:step-{step}" for step in (10, 20)]
    with system_session(system_engine) as session:
        resolved = resolve(session, caller, "tiny", [(name, 0.5) for name in names])
    assert [part.record.name for part in resolved.experts] == names


def test_a_checkpoint_is_retrieved_as_a_model_but_is_in_no_list_and_never_routed_to(
    system_engine: Engine, client: Client, claim: Claim, job: str, caller: Caller
) -> None:
    report(system_engine, claim, 10)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE base_models SET is_default = true"))
        assert resolve(session, caller, "auto", []).candidates == []
    name = f"main.summer@{job}:step-10"
    found: Any = client.models.retrieve(name).to_dict()
    assert (found["kind"], found["base_model"]) == ("checkpoint", "tiny")
    assert name not in [model.id for model in client.models.list()]


def test_chat_reaches_for_a_checkpoint(system_engine: Engine, client: Client, claim: Claim, job: str) -> None:
    report(system_engine, claim, 10)
    with pytest.raises(openai.InternalServerError, match="Serving does not answer"):  # all before serving went well
        client.chat.completions.create(
            model=f"main.summer@{job}:step-10", messages=[{"role": "user", "content": "1 + 1 ="}]
        )


@pytest.mark.parametrize("name", ["{0}:step-11", "{0}:step-010", "{0}:step-", "{0}", "{0}:step-99999999999", "ftjob-0"])
def test_what_names_no_checkpoint_is_not_found(
    system_engine: Engine, claim: Claim, job: str, caller: Caller, name: str
) -> None:
    report(system_engine, claim, 10)
    with pytest.raises(NotFoundError), system_session(system_engine) as session:
        resolve(session, caller, f"main.summer@{name.format(job)}", [])


def test_a_deleted_checkpoint_answers_no_more(system_engine: Engine, claim: Claim, job: str, caller: Caller) -> None:
    report(system_engine, claim, 10, 20, 30, 40)
    with pytest.raises(NotFoundError), system_session(system_engine) as session:
        resolve(session, caller, f"main.summer@{job}:step-10", [])
