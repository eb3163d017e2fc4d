"""The moves of a job on real SQL, each in a transaction of its own: what agents, the leader and users do to it."""

import uuid
from collections.abc import Callable
from typing import Any

from claims import AGENT, admit_queued, claim_one
from sqlalchemy import Engine, select, text
from suites import manifest_of

from zhub import scheduler
from zhub.admission import admit as admission
from zhub.database.sessions import system_session, tenant_session
from zhub.kinds import outcomes, table
from zhub.models import Job, JobEvent
from zhub.queue import attempts, jobs, leadership
from zhub.queue.attempts import Failure
from zhub.queue.claims import Claim
from zhub.queue.desired import apply_requested_changes, request_cancel, request_pause, request_resume
from zhub.registry.publish import publish
from zhub.tenancy.keys import Caller

LEADER = uuid.UUID(int=7)
LOST = Failure("lost", "The worker died.", retryable=True)
WRONG = Failure("training_error", "It cannot work.")


def claim(engine: Engine, *kinds: str, agent: uuid.UUID = AGENT, cluster: str = "default") -> Claim | None:
    with system_session(engine) as session:
        return claim_one(session, *(kinds or ("train", "validate", "decompose")), agent=agent, cluster=cluster)


def claimed(engine: Engine) -> Claim:
    """As ``claim``, where a job has to be there."""
    claimed_job = claim(engine)
    assert claimed_job is not None
    return claimed_job


def heartbeat(engine: Engine, job_id: uuid.UUID, fence: int, **options: Any) -> str:
    with system_session(engine) as session:
        return attempts.heartbeat(session, job_id, fence, lease_s=60, **({"progressed": True} | options))


def publish_version(engine: Engine, job_id: uuid.UUID, fence: int) -> int:
    with system_session(engine) as session:
        return publish(session, job_id, fence, manifest_of(job_id, fence=fence), "prefix", 7).version


def fail(engine: Engine, job_id: uuid.UUID, fence: int, failure: Failure = LOST, outcome: str = "failed_infra") -> str:
    with system_session(engine) as session:
        return outcomes.record_failure(session, job_id, fence, failure, outcome=outcome)


def stopped(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    with system_session(engine) as session:
        return outcomes.record_stop(session, job_id, fence)


def lose(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    with system_session(engine) as session:
        return outcomes.record_loss(session, job_id, fence)


def preempt(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    """Ask the attempt to leave; return what is wanted of its job then."""
    with system_session(engine) as session:
        attempts.preempt(session, job_id, fence, "Its node goes away.")
        return jobs.get_job(session, job_id).desired


def succeed(engine: Engine, job_id: uuid.UUID, fence: int) -> str:
    with system_session(engine) as session:
        attempts.succeed(session, job_id, fence)
        return jobs.get_job(session, job_id).state


def cancel(engine: Engine, caller: Caller, job_id: uuid.UUID) -> str:
    with tenant_session(engine, caller.org_id) as session:
        return request_cancel(session, job_id).state


def reap(engine: Engine) -> list[tuple[uuid.UUID, str]]:
    with system_session(engine) as session:
        return [(job.job_id, job.state) for job in outcomes.reap(session)]


def admit(engine: Engine) -> set[uuid.UUID]:
    with system_session(engine) as session:
        return {job.job_id for job in admission.admit(session, table.names(), agent_lost_after_s=30)}


def execute(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def expire_leases(engine: Engine) -> None:
    execute(engine, "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE lease_until IS NOT NULL")


def readmit(engine: Engine) -> None:
    """What back-off and admission do, without the wait."""
    with system_session(engine) as session:
        admit_queued(session)


def job_row(engine: Engine, job_id: uuid.UUID) -> Job:
    with system_session(engine) as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def lead(engine: Engine) -> None:
    """A pass of the leader, in which no back-off is waited for."""
    execute(engine, "UPDATE jobs SET not_before = NULL WHERE state = 'queued'")
    with system_session(engine) as session:
        term = leadership.elect(session, LEADER, lease_s=60)
    assert term is not None
    scheduler.maintenance_pass(engine, LEADER, term)
    scheduler.admission_pass(engine, LEADER, term)


def all_rows(engine: Engine) -> dict[str, Any]:
    """All rows that the protocol writes, as JSON: equal before and after means that nothing was written."""
    tables = ("jobs", "attempts", "job_events", "expert_versions", "experts", "dataset_versions", "base_models")
    with engine.connect() as connection:
        return {
            table: connection.scalars(text(f"SELECT to_jsonb(t) FROM {table} t ORDER BY id")).all() for table in tables
        }


def wait_until_blocked(engine: Engine, until: Callable[..., Any], count: int = 1) -> None:
    """Return once so many sessions of the database wait for a lock that another holds."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    def blocked() -> bool:
        with engine.connect() as connection:
            return (connection.scalar(waiting) or 0) >= count

    until(blocked)


def pause(engine: Engine, caller: Caller, job_id: uuid.UUID) -> str:
    with tenant_session(engine, caller.org_id) as session:
        return request_pause(session, job_id).state


def resume(engine: Engine, caller: Caller, job_id: uuid.UUID) -> str:
    with tenant_session(engine, caller.org_id) as session:
        return request_resume(session, job_id).state


def apply_changes(engine: Engine) -> None:
    with system_session(engine) as session:
        apply_requested_changes(session)


def messages(engine: Engine, job_id: uuid.UUID) -> list[str]:
    with system_session(engine) as session:
        statement = select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.position)
        return list(session.scalars(statement))
