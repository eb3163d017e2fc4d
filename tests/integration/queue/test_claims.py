"""Claims on real SQL: which job an agent gets, under which fence, and that no other agent gets it too."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from claims import AGENT, claim_one
from job_moves import claim, claimed, execute, fail, readmit
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from zhub.database.sessions import system_session
from zhub.models import Attempt
from zhub.queue import claims
from zhub.queue.claims import Claim
from zhub.tenancy.keys import Caller


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
        job_ids = []
        while claimed_job := claim(system_engine, agent=uuid.UUID(int=agent)):
            job_ids.append(claimed_job.job_id)
        return job_ids

    with ThreadPoolExecutor(4) as pool:
        job_ids = [job_id for part in pool.map(drain, range(4)) for job_id in part]
    assert (len(job_ids), set(job_ids)) == (24, made)


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
    claimed_job = claim_into(system_engine, "another", "basis")
    assert claimed_job is not None and (claimed_job.job_id, claimed_job.pack_key) == (made, "basis")


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
        claimed_job = claim_one(session, "train", agent=agent, free=free)
    assert (claimed_job and claimed_job.workers) == given


def test_a_job_that_asks_for_more_workers_than_there_are_is_given_all_of_them(
    system_engine: Engine, admitted: Callable[..., uuid.UUID], make_agent: Callable[..., uuid.UUID]
) -> None:
    job_id = admitted(workers=8)
    agent = make_agent(slots=2)
    with system_session(system_engine) as session:
        claimed_job = claim_one(session, "train", agent=agent, free=2)
        charged = session.scalar(select(Attempt.workers).where(Attempt.job_id == job_id))
    assert claimed_job is not None and (claimed_job.workers, charged) == (2, 2)


def test_a_job_that_was_lost_shares_with_none(system_engine: Engine, admitted: Callable[..., uuid.UUID]) -> None:
    lost = admitted(pack_key="basis", infra_failures=1)
    assert claim_into(system_engine, "basis") is None
    claimed_job = claimed(system_engine)
    assert (claimed_job.job_id, claimed_job.pack_key) == (lost, None)


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
    claimed_job = (admitted(), claimed(system_engine))[1]
    with pytest.raises(IntegrityError, match="uq_attempts_job_id_fence"), system_session(system_engine) as session:
        session.add(
            Attempt(org_id=claimed_job.org_id, job_id=claimed_job.job_id, fence=claimed_job.fence, agent_id=AGENT)
        )
