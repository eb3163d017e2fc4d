"""The job protocol on real SQL: who owns a job, who may write to it, and that one job makes one version."""

import itertools
import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from claims import AGENT, admit_queued, claim_one
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import IntegrityError
from suites import manifest_of

from zhub import scheduler
from zhub.admission import admit as admission
from zhub.database.sessions import make_engine, system_session, tenant_session
from zhub.datasets import files
from zhub.embedded.postgres import Urls
from zhub.errors import ConflictError, DeposedError, LeaseLostError, UnavailableError
from zhub.models import Agent, Attempt, BaseModel, DatasetVersion, Expert, ExpertVersion, Job, JobEvent
from zhub.process.wakeup import PollingWakeup
from zhub.queue import attempts as job_attempts
from zhub.queue import claims, job_events, jobs, leadership, reaper
from zhub.queue.attempts import Failure
from zhub.queue.claims import Claim
from zhub.queue.desired import apply_requested_changes, request_cancel, request_pause, request_resume
from zhub.queue.job_events import Event
from zhub.registry import publish as version_publish
from zhub.registry.publish import published
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]

LOST = Failure("lost", "The worker died.", retryable=True)
WRONG = Failure("training_error", "It cannot work.")


def claim(engine: Engine, *kinds: str, agent: uuid.UUID = AGENT, cluster: str = "default") -> Claim | None:
    with system_session(engine) as session:
        return claim_one(session, *(kinds or ("train", "validate", "decompose")), agent=agent, cluster=cluster)


def claimed(engine: Engine) -> Claim:
    found = claim(engine)
    assert found is not None
    return found


def heartbeat(engine: Engine, job_id: uuid.UUID, fence: int, **options: Any) -> str:
    with system_session(engine) as session:
        return job_attempts.heartbeat(session, job_id, fence, lease_s=60, **({"progressed": True} | options))


def publish(engine: Engine, job_id: uuid.UUID, fence: int) -> int:
    with system_session(engine) as session:
        return version_publish.publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7).version


def fail(engine: Engine, job_id: uuid.UUID, fence: int, failure: Failure = LOST, outcome: str = "failed_infra") -> str:
    with system_session(engine) as session:
        return job_attempts.fail(session, job_id, fence, failure, outcome=outcome)


def stopped(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    with system_session(engine) as session:
        return job_attempts.stopped(session, job_id, fence)


def lose(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    with system_session(engine) as session:
        return job_attempts.lose(session, job_id, fence)


def preempt(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    """Ask the attempt to leave; return what is wanted of its job then."""
    with system_session(engine) as session:
        job_attempts.preempt(session, job_id, fence, "Its node goes away.")
        return jobs.get_job(session, job_id).desired


def succeed(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    with system_session(engine) as session:
        job_attempts.succeed(session, job_id, fence)
        return jobs.get_job(session, job_id).state


def cancel(engine: Engine, caller: Caller, job_id: uuid.UUID) -> str:
    with tenant_session(engine, caller.org_id) as session:
        return request_cancel(session, job_id).state


def reap(engine: Engine) -> list[tuple[uuid.UUID, str]]:
    with system_session(engine) as session:
        return [(job.job_id, job.state) for job in reaper.reap(session)]


def admit(engine: Engine) -> set[uuid.UUID]:
    with system_session(engine) as session:
        return {job.job_id for job in admission.admit(session, agent_lost_after_s=30)}


def execute(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def expire_leases(engine: Engine) -> None:
    execute(engine, "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE lease_until IS NOT NULL")


def readmit(engine: Engine) -> None:
    """What back-off and admission do, without the wait."""
    with system_session(engine) as session:
        admit_queued(session)


def row(engine: Engine, job_id: uuid.UUID) -> Job:
    with system_session(engine) as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def everything(engine: Engine) -> dict[str, Any]:
    """All rows that the protocol writes, as JSON: equal before and after means that nothing was written."""
    tables = ("jobs", "attempts", "job_events", "expert_versions", "experts", "dataset_versions", "base_models")
    with engine.connect() as connection:
        return {
            table: connection.scalars(text(f"SELECT to_jsonb(t) FROM {table} t ORDER BY id")).all() for table in tables
        }


@pytest.fixture
def admitted(make_job: MakeJob, caller: Caller) -> Callable[..., uuid.UUID]:
    """Make a job that agents may claim."""

    def make(**options: Any) -> uuid.UUID:
        return make_job(caller, **({"state": "admitted", "admitted_at": func.now()} | options))

    return make


def wait_until_blocked(engine: Engine, until: Callable[..., Any], count: int = 1) -> None:
    """Return once so many sessions of the database wait for a lock that another holds."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    def blocked() -> bool:
        with engine.connect() as connection:
            return (connection.scalar(waiting) or 0) >= count

    until(blocked)


# Claims


def test_a_claim_says_what_to_run_and_under_which_fence(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted(spec={"kind": "train", "seed": 3})
    assert claim(system_engine) == Claim(job_id, caller.org_id, 1, "train", {"kind": "train", "seed": 3})


def test_a_claim_carries_the_trace_of_the_request_that_made_its_job(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    admitted()
    execute(system_engine, "UPDATE jobs SET traceparent = 'the span'")
    claimed_job = claim(system_engine)
    assert claimed_job is not None and claimed_job.traceparent == "the span"


def test_two_claimers_never_get_one_job(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    made = {admitted() for _ in range(24)}
    barrier = threading.Barrier(4)

    def drain(agent: int) -> list[uuid.UUID]:
        barrier.wait(timeout=10)
        got = []
        while found := claim(system_engine, agent=uuid.UUID(int=agent)):
            got.append(found.job_id)
        return got

    with ThreadPoolExecutor(4) as pool:
        got = [job_id for part in pool.map(drain, range(4)) for job_id in part]
    assert (len(got), set(got)) == (24, made)


def test_a_claim_passes_over_a_job_that_another_claim_holds_uncommitted(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    first, second = admitted(), admitted()
    with system_session(system_engine) as session:
        held = claim_one(session, "train")
        other = claim(system_engine)
        assert claim(system_engine) is None
    assert held is not None and other is not None
    assert {held.job_id, other.job_id} == {first, second}


def test_a_claim_that_is_rolled_back_leaves_the_job_to_be_claimed_under_the_same_fence(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    admitted()
    with system_session(system_engine) as session:
        claim_one(session, "train")
        session.rollback()
    assert claimed(system_engine).fence == 1


@pytest.mark.parametrize(
    "columns",
    [{"state": "queued"}, {"desired": "cancel"}, {"desired": "pause"}, {"cluster": "elsewhere"}, {"kind": "decompose"}],
)
def test_only_an_admitted_job_of_the_cluster_and_kind_is_claimed(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], columns: dict[str, Any]
) -> None:
    admitted(**columns)
    assert claim(system_engine, "train", "validate") is None


def test_a_claim_takes_the_one_admitted_first_whatever_its_priority(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    late, early = admitted(priority=1), admitted()
    execute(system_engine, "UPDATE jobs SET admitted_at = now() - interval '1 hour' WHERE id = :id", id=early)
    assert [claimed(system_engine).job_id for _ in range(2)] == [early, late]


def test_an_agent_with_several_free_workers_claims_for_all_of_them_at_once(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    made = [admitted() for _ in range(4)]
    for place, job_id in enumerate(made):
        execute(
            system_engine,
            "UPDATE jobs SET admitted_at = now() + :place * interval '1 ms' WHERE id = :id",
            id=job_id,
            place=place,
        )
    with system_session(system_engine) as session:
        first = claims.claim_up_to(session, 3, AGENT, "default", ["train"], lease_s=60, free=3)
    with system_session(system_engine) as session:
        rest = claims.claim_up_to(session, 3, AGENT, "default", ["train"], lease_s=60, free=3)
    assert [claim.job_id for claim in (*first, *rest)] == made and len(first) == 3
    with system_session(system_engine) as session:
        attempts = session.scalars(select(Attempt)).all()
        assert {attempt.job_id for attempt in attempts} == set(made) and len(attempts) == 4


def claim_into(engine: Engine, *packs: str) -> Claim | None:
    with system_session(engine) as session:
        return claim_one(session, "train", free=0, packs=packs)


def test_a_claim_for_a_pack_takes_a_job_of_that_pack(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    made = admitted(pack_key="basis")
    assert claim_into(system_engine, "another") is None
    found = claim_into(system_engine, "another", "basis")
    assert found is not None and (found.job_id, found.pack_key) == (made, "basis")


@pytest.mark.parametrize("first", [{"pack_key": None}, {"pack_key": "another"}])
def test_a_claim_for_a_pack_takes_nothing_while_a_job_that_does_not_fit_is_first(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], first: dict[str, Any]
) -> None:
    admitted(**first)
    admitted(pack_key="basis")
    assert claim_into(system_engine, "basis") is None


@pytest.mark.parametrize(("free", "given"), [(2, None), (3, 3), (4, 3)])
def test_a_job_that_takes_several_workers_is_claimed_once_they_are_all_free_and_holds_up_what_comes_after(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], make_agent: Callable[..., uuid.UUID],
    free: int, given: int | None,
) -> None:  # fmt: skip
    admitted(workers=3)
    admitted()
    agent = make_agent(slots=4)
    with system_session(system_engine) as session:
        found = claim_one(session, "train", agent=agent, free=free)
    assert (found and found.workers) == given


def test_a_job_that_asks_for_more_workers_than_there_are_is_given_all_of_them(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], make_agent: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted(workers=8)
    agent = make_agent(slots=2)
    with system_session(system_engine) as session:
        found = claim_one(session, "train", agent=agent, free=2)
        charged = session.scalar(select(Attempt.workers).where(Attempt.job_id == job_id))
    assert found is not None and (found.workers, charged) == (2, 2)


def test_a_job_that_was_lost_shares_with_none(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    lost = admitted(pack_key="basis", infra_failures=1)
    assert claim_into(system_engine, "basis") is None
    found = claimed(system_engine)
    assert (found.job_id, found.pack_key) == (lost, None)


def test_every_claim_takes_a_higher_fence_and_makes_one_attempt(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fences = []
    for _ in range(3):
        fences.append(claimed(system_engine).fence)
        fail(system_engine, job_id, fences[-1])
        readmit(system_engine)
    with system_session(system_engine) as session:
        attempts = session.scalars(select(Attempt.fence).where(Attempt.job_id == job_id).order_by(Attempt.fence)).all()
    assert (fences, list(attempts)) == ([1, 2, 3], [1, 2, 3])


def test_the_database_holds_one_attempt_for_each_fence(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    got = (admitted(), claimed(system_engine))[1]
    with pytest.raises(IntegrityError, match="uq_attempts_job_id_fence"), system_session(system_engine) as session:
        session.add(Attempt(org_id=got.org_id, job_id=got.job_id, fence=got.fence, agent_id=AGENT))


# What a stale attempt may write: nothing


WRITES: dict[str, Callable[[Engine, uuid.UUID, int], Any]] = {
    "heartbeat": lambda engine, job_id, fence: heartbeat(
        engine, job_id, fence, events=[Event(1, "info", "message", "x")]
    ),
    "publish": publish,
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
    before = everything(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, stale)
    assert everything(system_engine) == before


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


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_a_wish_is_not_replaced_by_a_preemption(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], wish: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    execute(system_engine, "UPDATE jobs SET desired = :wish WHERE id = :id", wish=wish, id=job_id)
    assert preempt(system_engine, job_id, fence) == wish


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


@pytest.mark.parametrize("wish", ["pause", "cancel", "preempt"])
@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_lost_its_lease_does_not_stop_its_successor_when_somebody_wishes_so(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], write: str, wish: str
) -> None:
    job_id = admitted()
    stale = claimed(system_engine).fence
    expire_leases(system_engine)
    reap(system_engine)
    readmit(system_engine)
    claimed(system_engine)
    execute(system_engine, "UPDATE jobs SET desired = :wish", wish=wish)
    before = everything(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, stale)
    assert everything(system_engine) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_whose_job_was_reaped_writes_nothing(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], write: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    expire_leases(system_engine)
    reap(system_engine)
    before = everything(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, fence)
    assert everything(system_engine) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_fence_that_was_never_given_out_writes_nothing(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], write: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    before = everything(system_engine)
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, fence + 1)
    assert everything(system_engine) == before


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("write", WRITES)
def test_a_job_that_has_ended_does_not_change_any_more(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller, end: str, write: str
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    if end == "cancelled":
        cancel(api_engine, caller, job_id)
    {"succeeded": publish, "failed": WRITES["fail for good"], "cancelled": stopped}[end](system_engine, job_id, fence)
    before = everything(system_engine)
    assert row(system_engine, job_id).state == end
    with pytest.raises(LeaseLostError):
        WRITES[write](system_engine, job_id, fence)
    assert everything(system_engine) == before


def test_a_late_worker_that_nobody_has_replaced_may_still_finish(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    expire_leases(system_engine)
    assert publish(system_engine, job_id, fence) == 1


# Heartbeats


def test_the_first_heartbeat_makes_the_job_run(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    assert row(system_engine, job_id).state == "admitted"
    fence = claimed(system_engine).fence
    heartbeat(system_engine, job_id, fence)
    assert row(system_engine, job_id).state == "running"


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
    assert row(system_engine, job_id).state == "stopping"


def test_a_heartbeat_without_progress_leaves_the_time_of_the_last(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    before = row(system_engine, job_id).progress_at
    heartbeat(system_engine, job_id, fence, progressed=False)
    assert row(system_engine, job_id).progress_at == before


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


def test_a_lost_job_is_tried_again_later_and_later(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    waits = []
    for _ in range(job_attempts.MAX_INFRA_FAILURES):
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
    job_id = admitted(infra_failures=job_attempts.MAX_INFRA_FAILURES)
    claimed(system_engine)
    expire_leases(system_engine)
    reap(system_engine)
    failed = row(system_engine, job_id)
    assert failed.state == "failed" and failed.error is not None and failed.error["code"] == "lost"


@pytest.mark.parametrize(
    ("outcome", "retries"),
    [
        ("failed_user", job_attempts.MAX_USER_FAILURES),
        ("failed_infra", job_attempts.MAX_INFRA_FAILURES),
        ("lost", job_attempts.MAX_INFRA_FAILURES),
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
    assert row(system_engine, job_id).error == {"code": "training_error", "message": "It cannot work.", "param": None}


def test_a_retry_forgets_the_error(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    fail(system_engine, job_id, claimed(system_engine).fence)
    assert row(system_engine, job_id).error is None


@pytest.mark.parametrize(
    ("desired", "state", "afterwards"),
    [("cancel", "cancelled", "cancel"), ("pause", "paused", "pause"), ("preempt", "queued", "run")],
)
@pytest.mark.parametrize("how", ["fail", "reap", "stopped"])
def test_the_wish_of_the_user_comes_before_the_retry(
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
    found = row(system_engine, job_id)
    assert (found.state, found.desired) == (state, afterwards)


def test_a_cancelled_job_ends_cancelled_even_when_its_budget_is_spent(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    cancel(api_engine, caller, job_id)
    fail(system_engine, job_id, fence, WRONG, "failed_user")
    found = row(system_engine, job_id)
    assert (found.state, found.error) == ("cancelled", None)


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
    got = claimed(system_engine)
    fail(system_engine, got.job_id, got.fence, WRONG, "failed_user")
    with system_session(system_engine) as session:
        found = session.scalars(select(DatasetVersion).where(DatasetVersion.id == version.id)).one()
    assert found.status == "error" and "It cannot work." in (found.status_details or "")


def test_a_base_model_whose_decomposition_is_lost_too_often_says_so(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], make_base_model: Callable[..., uuid.UUID]
) -> None:
    base_model_id = make_base_model("big", status="decomposing")
    admitted(kind="decompose", base_model_id=base_model_id, infra_failures=job_attempts.MAX_INFRA_FAILURES)
    claimed(system_engine)
    expire_leases(system_engine)
    reap(system_engine)
    with system_session(system_engine) as session:
        found = session.scalars(select(BaseModel).where(BaseModel.id == base_model_id)).one()
    assert found.status == "error" and found.error


# Publication and cancellation


def test_a_version_carries_the_fence_that_its_job_had(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fail(system_engine, job_id, claimed(system_engine).fence)
    readmit(system_engine)
    publish(system_engine, job_id, claimed(system_engine).fence)
    with system_session(system_engine) as session:
        version = session.scalars(select(ExpertVersion)).one()
    assert (version.job_id, version.fence, version.digest) == (job_id, 2, manifest_of(job_id, fence=2).digest)


def test_a_cancellation_that_was_accepted_wins_over_a_result(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    cancel(api_engine, caller, job_id)
    before = everything(system_engine)
    with pytest.raises(LeaseLostError):
        publish(system_engine, job_id, fence)
    assert everything(system_engine) == before


def test_a_published_job_can_no_longer_be_cancelled(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    publish(system_engine, job_id, claimed(system_engine).fence)
    before = everything(system_engine)
    with pytest.raises(ConflictError):
        cancel(api_engine, caller, job_id)
    assert everything(system_engine) == before


def test_cancelling_twice_is_no_error_and_one_event(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    claimed(system_engine)
    cancel(api_engine, caller, job_id)
    before = everything(system_engine)
    cancel(api_engine, caller, job_id)
    assert everything(system_engine) == before


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
            version_publish.publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
            cancelling = pool.submit(cancel, api_engine, caller, job_id)
            wait_until_blocked(system_engine, until)
        with pytest.raises(ConflictError):
            cancelling.result(timeout=10)
    assert row(system_engine, job_id).state == "succeeded"


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
            publishing = pool.submit(publish, system_engine, job_id, fence)
            wait_until_blocked(system_engine, until)
        with pytest.raises(LeaseLostError):
            publishing.result(timeout=10)
    assert stopped(system_engine, job_id, fence) == "cancelled"


def test_versions_of_concurrent_publications_are_numbered_without_a_gap(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    got = [(admitted(), claimed(system_engine))[1] for _ in range(9)]
    barrier = threading.Barrier(len(got))

    def race(index: int) -> None:
        barrier.wait(timeout=10)
        with system_session(system_engine) as session:
            job_id, fence = got[index].job_id, got[index].fence
            version_publish.publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
            if index % 3 == 0:  # a commit that never happens must not use up a number
                session.rollback()

    with ThreadPoolExecutor(len(got)) as pool:
        list(pool.map(race, range(len(got))))
    with system_session(system_engine) as session:
        numbers = session.scalars(select(ExpertVersion.version).order_by(ExpertVersion.version)).all()
        last = session.scalars(select(Expert.last_version)).one()
    assert (list(numbers), last) == ([1, 2, 3, 4, 5, 6], 6)


def test_each_expert_counts_its_own_versions(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    numbers = [publish(system_engine, admitted(expert=name), claimed(system_engine).fence) for name in "aba"]
    assert numbers == [1, 1, 2]


def test_the_database_holds_one_version_for_each_job(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    job_id = admitted()
    publish(system_engine, job_id, claimed(system_engine).fence)
    copied = text(
        "INSERT INTO expert_versions SELECT (jsonb_populate_record(v, "
        "jsonb_build_object('id', gen_random_uuid(), 'version', 2))).* FROM expert_versions v"
    )
    with pytest.raises(IntegrityError, match="uq_expert_versions_job_id"), system_session(system_engine) as session:
        session.execute(copied)


def test_a_publication_whose_acknowledgement_was_lost_is_found_and_not_repeated(
    system_engine: Engine, database: Urls, admitted: Callable[..., uuid.UUID], proxy: Any
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    engine = make_engine(proxy.url(database.system), pool_size=1)
    with system_session(engine) as session:
        assert published(session, job_id) is None
    proxy.swallow_commits()
    with pytest.raises(UnavailableError):
        publish(engine, job_id, fence)
    with pytest.raises(LeaseLostError):
        publish(engine, job_id, fence)
    with system_session(engine) as session:
        found = published(session, job_id)
    engine.dispose()
    assert found is not None and (found.version, found.fence) == (1, fence)


def test_a_publication_that_breaks_before_its_commit_may_be_repeated(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    with system_session(system_engine) as session:
        version_publish.publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
        session.rollback()
    assert publish(system_engine, job_id, fence) == 1


# Admission


def test_admission_fills_the_free_slots_with_the_oldest_jobs(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=2)
    made = [make_job(caller) for _ in range(5)]
    assert admit(system_engine) == set(made[:2])


def test_admission_gives_out_no_slot_twice(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=2)
    made = [make_job(caller) for _ in range(5)]
    seen = [admit(system_engine), admit(system_engine)]
    fence = claimed(system_engine).fence
    seen.append(admit(system_engine))
    publish(system_engine, made[0], fence)
    seen.append(admit(system_engine))
    assert seen == [set(made[:2]), set(), set(), {made[2]}]


def test_a_light_job_needs_no_slot(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    heavy = [make_job(caller) for _ in range(2)]
    light = {make_job(caller, kind="validate") for _ in range(4)}
    assert admit(system_engine) == light | {heavy[0]}


def test_light_jobs_take_no_slot_from_heavy_ones(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    make_job(caller, kind="validate")
    admit(system_engine)
    heavy = make_job(caller)
    assert admit(system_engine) == {heavy}


def test_two_agents_of_one_cluster_offer_its_slots_once(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    for _ in range(2):
        make_agent(slots=2)
    for _ in range(5):
        make_job(caller)
    assert len(admit(system_engine)) == 2


def test_an_agent_that_was_not_seen_lately_offers_nothing(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent()
    execute(system_engine, "UPDATE agents SET seen_at = now() - interval '31 seconds'")
    make_job(caller)
    assert admit(system_engine) == set()


def test_each_cluster_admits_its_own_jobs(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(cluster="east", slots=1)
    make_agent(cluster="west", slots=2)
    make_job(caller, cluster="nowhere")
    east = [make_job(caller, cluster="east") for _ in range(2)]
    west = [make_job(caller, cluster="west") for _ in range(3)]
    assert admit(system_engine) == {east[0], *west[:2]}


@pytest.mark.parametrize("columns", [{"desired": "cancel"}, {"desired": "pause"}, {"state": "waiting"}])
def test_a_job_that_nobody_wants_to_run_is_not_admitted(
    system_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
    columns: dict[str, Any],
) -> None:
    make_agent()
    make_job(caller, **columns)
    assert admit(system_engine) == set()


def test_a_job_that_waits_for_its_next_try_lets_others_pass(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    make_job(caller, not_before=func.now() + text("interval '1 hour'"))
    ready = make_job(caller)
    assert admit(system_engine) == {ready}


def test_priority_comes_before_age(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID], make_job: MakeJob, caller: Caller
) -> None:
    make_agent(slots=1)
    make_job(caller)
    urgent = make_job(caller, priority=5)
    assert admit(system_engine) == {urgent}


def pause(engine: Engine, caller: Caller, job_id: uuid.UUID) -> str:
    with tenant_session(engine, caller.org_id) as session:
        return request_pause(session, job_id).state


def resume(engine: Engine, caller: Caller, job_id: uuid.UUID) -> str:
    with tenant_session(engine, caller.org_id) as session:
        return request_resume(session, job_id).state


def settle(engine: Engine) -> None:
    with system_session(engine) as session:
        apply_requested_changes(session)


def messages(engine: Engine, job_id: uuid.UUID) -> list[str]:
    with system_session(engine) as session:
        found = select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.position)
        return list(session.scalars(found))


@pytest.mark.parametrize("state", ["queued", "admitted"])
def test_a_job_without_an_attempt_is_paused_and_resumed_by_the_leader(
    system_engine: Engine, api_engine: Engine, make_job: MakeJob, caller: Caller, state: str
) -> None:
    job_id = make_job(caller, state=state)
    pause(api_engine, caller, job_id)
    settle(system_engine)
    assert row(system_engine, job_id).state == "paused"
    resume(api_engine, caller, job_id)
    settle(system_engine)
    assert row(system_engine, job_id).state == "queued"
    told = ["Pause requested.", "The job is paused.", "Resumption requested.", "The job is queued."]
    assert messages(system_engine, job_id) == ["Enqueued.", *told]


def test_a_resumed_job_waits_for_no_back_off(
    system_engine: Engine, api_engine: Engine, admitted: Callable[..., uuid.UUID], caller: Caller
) -> None:
    job_id = admitted()
    fail(system_engine, job_id, claimed(system_engine).fence)
    pause(api_engine, caller, job_id)
    settle(system_engine)
    resume(api_engine, caller, job_id)
    settle(system_engine)
    found = row(system_engine, job_id)
    assert (found.state, found.not_before) == ("queued", None)


@pytest.mark.parametrize("wish", [pause, resume])
def test_wishing_twice_is_no_error_and_one_event(
    system_engine: Engine,
    api_engine: Engine,
    make_job: MakeJob,
    caller: Caller,
    wish: Callable[[Engine, Caller, uuid.UUID], str],
) -> None:
    job_id = make_job(caller, **({} if wish is pause else {"state": "paused", "desired": "pause"}))
    wish(api_engine, caller, job_id)
    before = everything(system_engine)
    wish(api_engine, caller, job_id)
    assert everything(system_engine) == before


@pytest.mark.parametrize("wish", [pause, resume])
@pytest.mark.parametrize(
    ("end", "why"), [("succeeded", "already succeeded"), ("failed", "already failed"), ("cancelled", "been cancelled")]
)
def test_a_job_that_has_ended_is_neither_paused_nor_resumed(
    system_engine: Engine,
    api_engine: Engine,
    make_job: MakeJob,
    caller: Caller,
    wish: Callable[[Engine, Caller, uuid.UUID], str],
    end: str,
    why: str,
) -> None:
    job_id = make_job(caller, state=end, finished_at=func.now())
    before = everything(system_engine)
    with pytest.raises(ConflictError, match=why):
        wish(api_engine, caller, job_id)
    assert everything(system_engine) == before


@pytest.mark.parametrize("wish", [pause, resume])
def test_a_cancellation_is_not_taken_back_by_another_wish(
    system_engine: Engine,
    api_engine: Engine,
    admitted: Callable[..., uuid.UUID],
    caller: Caller,
    wish: Callable[[Engine, Caller, uuid.UUID], str],
) -> None:
    job_id = admitted()
    claimed(system_engine)
    cancel(api_engine, caller, job_id)
    with pytest.raises(ConflictError, match="being cancelled"):
        wish(api_engine, caller, job_id)
    assert row(system_engine, job_id).desired == "cancel"


def test_a_paused_job_can_be_cancelled(
    system_engine: Engine, api_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller, state="paused", desired="pause")
    cancel(api_engine, caller, job_id)
    settle(system_engine)
    assert row(system_engine, job_id).state == "cancelled"


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
            version_publish.publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7)
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
    publish(system_engine, job_id, fence)
    settle(system_engine)
    assert row(system_engine, job_id).state == "succeeded"


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
    found = row(system_engine, job_id)
    assert (found.not_before, found.infra_failures) == (None, 3)


def test_an_attempt_that_stopped_unasked_is_a_failure_with_a_back_off(
    system_engine: Engine, admitted: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted()
    fence = claimed(system_engine).fence
    heartbeat(system_engine, job_id, fence)
    assert stopped(system_engine, job_id, fence) == "queued"
    found = row(system_engine, job_id)
    assert found.not_before is not None and found.infra_failures == 1
    assert any("nobody had asked it" in message for message in messages(system_engine, job_id))


def test_every_move_of_a_job_is_told_once(
    system_engine: Engine,
    api_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
) -> None:
    make_agent()
    job_id = make_job(caller)
    admit(system_engine)
    fence = claimed(system_engine).fence
    for _ in range(2):
        heartbeat(system_engine, job_id, fence)
    pause(api_engine, caller, job_id)
    for _ in range(2):
        heartbeat(system_engine, job_id, fence)
    stopped(system_engine, job_id, fence)
    assert messages(system_engine, job_id) == [
        "Enqueued.",
        "The job is admitted.",
        "Attempt 1 started.",
        "The job is running.",
        "Pause requested.",
        "The job is stopping.",
        "The job is paused.",
    ]


def test_a_job_cancelled_before_it_began_is_settled_by_the_leader(
    system_engine: Engine, api_engine: Engine, make_job: MakeJob, caller: Caller
) -> None:
    job_id = make_job(caller)
    cancel(api_engine, caller, job_id)
    with system_session(system_engine) as session:
        assert apply_requested_changes(session) == 1
    found = row(system_engine, job_id)
    assert found.state == "cancelled" and found.finished_at is not None


# Leadership


def elect(engine: Engine, holder: uuid.UUID, *, lease_s: float = 60) -> int | None:
    with system_session(engine) as session:
        return leadership.elect(session, "scheduler", holder, lease_s=lease_s)


def expire_leader(engine: Engine) -> None:
    execute(engine, "UPDATE leaders SET lease_until = now() - interval '1 second'")


ONE, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def test_of_two_candidates_one_leads(system_engine: Engine) -> None:
    assert (elect(system_engine, ONE), elect(system_engine, OTHER)) == (1, None)


def test_candidates_that_start_together_get_one_leader(system_engine: Engine) -> None:
    barrier = threading.Barrier(4)

    def run(number: int) -> int | None:
        barrier.wait(timeout=10)
        return elect(system_engine, uuid.UUID(int=number))

    with ThreadPoolExecutor(4) as pool:
        terms = sorted(pool.map(run, range(4)), key=str)
    assert terms == [1, None, None, None]


def test_a_leader_that_renews_keeps_its_term(system_engine: Engine) -> None:
    assert [elect(system_engine, ONE) for _ in range(3)] == [1, 1, 1]


def test_the_term_grows_with_every_change_of_leader(system_engine: Engine) -> None:
    terms = []
    for holder in (ONE, OTHER, ONE):
        terms.append(elect(system_engine, holder))
        expire_leader(system_engine)
    assert terms == [1, 2, 3]


def test_who_resigns_lets_the_next_in_at_once(system_engine: Engine) -> None:
    elect(system_engine, ONE)
    with system_session(system_engine) as session:
        leadership.resign(session, "scheduler", ONE)
    assert elect(system_engine, OTHER) == 2


def test_nobody_can_resign_for_the_leader(system_engine: Engine) -> None:
    elect(system_engine, ONE)
    with system_session(system_engine) as session:
        leadership.resign(session, "scheduler", OTHER)
    assert elect(system_engine, OTHER) is None


@pytest.mark.parametrize("work", [scheduler.admission_pass, scheduler.maintenance_pass, scheduler.explanation_pass])
def test_what_a_deposed_leader_does_is_refused(
    system_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
    work: Callable[[Engine, uuid.UUID, int], Any],
) -> None:
    make_agent()
    make_job(caller, state="admitted", admitted_at=func.now())
    claimed(system_engine)
    expire_leases(system_engine)
    make_job(caller)
    elect(system_engine, ONE)
    expire_leader(system_engine)
    elect(system_engine, OTHER)
    before = everything(system_engine)
    with pytest.raises(DeposedError):
        work(system_engine, ONE, 1)
    assert everything(system_engine) == before


def test_a_leader_that_was_away_for_a_term_is_deposed_although_it_leads_again(system_engine: Engine) -> None:
    for holder in (ONE, OTHER, ONE):
        elect(system_engine, holder)
        expire_leader(system_engine)
    with pytest.raises(DeposedError):
        scheduler.admission_pass(system_engine, ONE, 1)


def test_an_election_waits_for_the_leaders_transaction(system_engine: Engine, until: Callable[..., Any]) -> None:
    elect(system_engine, ONE)
    expire_leader(system_engine)
    with ThreadPoolExecutor(1) as pool:
        with system_session(system_engine) as session:
            leadership.check_leading(session, "scheduler", ONE, 1)
            electing = pool.submit(elect, system_engine, OTHER)
            wait_until_blocked(system_engine, until)
            assert not electing.done()
        assert electing.result(timeout=10) == 2


def test_the_leader_reaps_settles_and_admits(
    system_engine: Engine,
    api_engine: Engine,
    make_agent: Callable[..., uuid.UUID],
    make_job: MakeJob,
    caller: Caller,
) -> None:
    make_agent(slots=1)
    lost = make_job(caller, state="admitted", admitted_at=func.now())
    claimed(system_engine)
    expire_leases(system_engine)
    unwanted, wanted = make_job(caller), make_job(caller)
    cancel(api_engine, caller, unwanted)
    elect(system_engine, ONE)
    scheduler.maintenance_pass(system_engine, ONE, 1)
    assert scheduler.admission_pass(system_engine, ONE, 1) == {"default"}
    assert [row(system_engine, job_id).state for job_id in (lost, unwanted, wanted)] == [
        "queued",
        "cancelled",
        "admitted",
    ]


def test_the_scheduler_resigns_when_it_is_stopped(system_engine: Engine) -> None:
    stopping = threading.Event()

    class StopAtFirstWait(PollingWakeup):
        """A wake-up that ends the loop instead of waiting."""

        def wait(self, topic: str, timeout_s: float) -> None:
            stopping.set()

    scheduler.run(system_engine, StopAtFirstWait(), stopping, leader_lease_s=60)
    assert elect(system_engine, OTHER) == 2


def test_a_scheduler_that_leads_again_says_its_new_term(
    system_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zhub.scheduler")
    stopping, waits = threading.Event(), itertools.count()

    class SomebodyLeadsMeanwhile(PollingWakeup):
        """A wake-up during whose first wait another scheduler leads, and its lease runs out."""

        def wait(self, topic: str, timeout_s: float) -> None:
            if next(waits):
                stopping.set()
                return
            with system_engine.begin() as connection:
                connection.execute(
                    text("UPDATE leaders SET holder = :other, term = 2, lease_until = now() - interval '1 second'"),
                    {"other": OTHER},
                )

    scheduler.run(system_engine, SomebodyLeadsMeanwhile(), stopping, leader_lease_s=60)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("leading")]
    assert said == ["leading, term 1", "leading, term 3"]


def test_a_scheduler_that_is_stopped_while_the_database_is_away_ends_quietly(database: Urls, proxy: Any) -> None:
    engine = make_engine(proxy.url(database.system), pool_size=1)
    stopping = threading.Event()

    class CutAndStop(PollingWakeup):
        """A wake-up during whose wait the database goes away and the process is told to stop."""

        def wait(self, topic: str, timeout_s: float) -> None:
            proxy.cut()
            stopping.set()

    scheduler.run(engine, CutAndStop(), stopping, leader_lease_s=60)
    engine.dispose()


def test_an_agent_is_one_row_however_often_it_announces_itself(
    system_engine: Engine, make_agent: Callable[..., uuid.UUID]
) -> None:
    agent_id = make_agent()
    with pytest.raises(IntegrityError), system_session(system_engine) as session:
        session.add(Agent(id=agent_id, cluster="default", slots=1))
