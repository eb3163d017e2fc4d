"""Poison: a job that brings down one worker after the other is not tried until its retry budget is spent."""

import uuid
from collections.abc import Callable, Iterable

import pytest
from claims import AGENT, admit_queued
from job_moves import execute
from sqlalchemy import Engine, func

from zhub.database.sessions import system_session
from zhub.errors import LeaseLostError
from zhub.kinds import redrive
from zhub.models import Job
from zhub.queue import attempts, jobs
from zhub.queue import claims as job_claims
from zhub.queue.claims import Claim
from zhub.queue.job_events import Event
from zhub.storage.keys import checkpoints_prefix
from zhub.tenancy.keys import Caller


@pytest.fixture
def make(make_job: Callable[..., uuid.UUID], caller: Caller) -> Callable[[], uuid.UUID]:
    return lambda: make_job(caller, state="admitted", admitted_at=func.now())


def begin(engine: Engine) -> dict[uuid.UUID, Claim]:
    """What back-off, admission and a claim of all jobs do, without the wait."""
    with system_session(engine) as session:
        admit_queued(session)
        claims = job_claims.claim_up_to(session, 9, AGENT, "default", ["train"], lease_s=60, free=9)
    return {claim.job_id: claim for claim in claims}


def lose(engine: Engine, claim: Claim, node: str, nodes: Iterable[str]) -> str:
    with system_session(engine) as session:
        return attempts.lose(session, claim.job_id, claim.fence, died_on=node, nodes=list(nodes)).state


def die(engine: Engine, job_id: uuid.UUID, node: str, nodes: Iterable[str] = "abc") -> str:
    """Begin an attempt whose worker dies on a node; return the job's next state."""
    return lose(engine, begin(engine)[job_id], node, nodes)


def job(engine: Engine, job_id: uuid.UUID) -> Job:
    with system_session(engine) as session:
        return jobs.get_job(session, job_id)


def test_a_job_under_which_workers_die_on_two_nodes_is_not_tried_again(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    job_id = make()
    assert [die(system_engine, job_id, node) for node in "aab"] == ["queued", "queued", "failed"]
    failed = job(system_engine, job_id)
    assert failed.error is not None and failed.error["code"] == "poison" and "batch_size" in failed.error["message"]
    # It was tried again twice because of the platform, and fails because of its owner.
    assert (failed.infra_failures, failed.user_failures) == (2, 1)


def test_a_worker_that_died_with_its_node_is_not_the_jobs_fault(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    job_id = make()
    assert [die(system_engine, job_id, *seen) for seen in (("a", "a"), ("b", "b"), ("c", "d"))] == ["queued"] * 3
    assert die(system_engine, job_id, "d", "cd") == "failed"


def test_a_worker_that_died_when_another_did_is_not_the_jobs_fault(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    other, job_id = make(), make()
    begun = begin(system_engine)
    assert [lose(system_engine, begun[one], "a", "ab") for one in (other, job_id)] == ["queued", "queued"]
    assert die(system_engine, job_id, "b") == "queued"
    hour_ago = "ended_at = now() - interval '1 hour'"
    execute(system_engine, f"UPDATE attempts SET {hour_ago} WHERE job_id = '{other}' AND outcome = 'lost'")
    assert die(system_engine, job_id, "b") == "failed"


def test_a_worker_that_died_while_it_was_to_be_left_clears_the_others(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    leaving, job_id = make(), make()
    begun = begin(system_engine)
    execute(system_engine, f"UPDATE jobs SET desired = 'preempt' WHERE id = '{leaving}'")
    assert [lose(system_engine, begun[one], "a", "ab") for one in (leaving, job_id)] == ["queued", "queued"]
    assert die(system_engine, job_id, "b") == "queued"


def test_a_worker_that_ended_with_its_lease_is_not_the_jobs_fault(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    job_id = make()
    assert die(system_engine, job_id, "a") == "queued"
    claim = begin(system_engine)[job_id]
    execute(system_engine, "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE lease_until IS NOT NULL")
    assert lose(system_engine, claim, "b", "ab") == "queued"


def test_a_job_that_gets_on_between_two_losses_is_no_poison(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    job_id = make()
    assert die(system_engine, job_id, "a") == "queued"
    claim = begin(system_engine)[job_id]
    report = {
        "type": "checkpoint",
        "step": 10,
        "key_prefix": f"{checkpoints_prefix(claim.org_id, claim.job_id)}/10",
        "digest": "d" * 64,
        "size_bytes": 1,
        "z": {"name": "z.safetensors", "size_bytes": 1, "sha256": "e" * 64},
        "metrics": {},
    }
    with system_session(system_engine) as session:
        events = [Event(1, "info", "message", "Checkpoint.", report)]
        attempts.heartbeat(session, claim.job_id, claim.fence, lease_s=60, progressed=True, events=events)
    assert lose(system_engine, claim, "b", "ab") == "queued"
    assert die(system_engine, job_id, "a") == "failed"


def test_a_redrive_forgives_a_job_the_workers_that_died_under_it(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    job_id = make()
    assert [die(system_engine, job_id, node) for node in "ab"] == ["queued", "failed"]
    with system_session(system_engine) as session:
        redrive.redrive(session, jobs.get_job(session, job_id))
    assert [die(system_engine, job_id, node) for node in "ab"] == ["queued", "failed"]


def test_who_has_lost_the_lease_to_another_says_nothing_about_its_worker(
    system_engine: Engine, make: Callable[[], uuid.UUID]
) -> None:
    job_id = make()
    first = begin(system_engine)[job_id]
    with system_session(system_engine) as session:
        attempts.lose(session, job_id, first.fence)
    begin(system_engine)[job_id]
    with pytest.raises(LeaseLostError):
        lose(system_engine, first, "a", "ab")
