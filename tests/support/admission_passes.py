"""Passes of admission, what they are given, and what those who wait are told."""

import uuid
from collections.abc import Callable
from typing import Any

from claims import claim_one
from job_moves import execute
from sqlalchemy import Engine, select, text

from zhub.admission import admit as admission
from zhub.admission.explain import explain
from zhub.database.sessions import system_session
from zhub.kinds import table
from zhub.models import QueuePlace
from zhub.queue import claims, jobs
from zhub.tenancy.keys import Caller

MakeJob = Callable[..., uuid.UUID]


def admit(engine: Engine) -> list[uuid.UUID]:
    """A pass of admission; return all jobs that are admitted after it, in their order."""
    with system_session(engine) as session:
        admission.admit(session, table.names(), agent_lost_after_s=30)
        return list(session.scalars(text("SELECT id FROM jobs WHERE state = 'admitted' ORDER BY admitted_at, id")))


def add_row(engine: Engine, row: Any) -> None:
    with system_session(engine) as session:
        session.add(row)


def claim(engine: Engine) -> claims.Claim:
    """Claim the first training for an agent with eight free workers."""
    with system_session(engine) as session:
        claimed_job = claim_one(session, "train", free=8)
    assert claimed_job is not None
    return claimed_job


def places(engine: Engine) -> dict[uuid.UUID, QueuePlace]:
    """What those who wait are told, by job."""
    with system_session(engine) as session:
        explain(session, table.names(), agent_lost_after_s=30)
    with system_session(engine) as session:
        return {place.job_id: place for place in session.scalars(select(QueuePlace))}


def running_for(engine: Engine, caller: Caller, make_job: MakeJob, count: int, **columns: Any) -> list[uuid.UUID]:
    """So many trainings that have run for an hour."""
    made = [make_job(caller, **columns) for _ in range(count)]
    admit(engine)
    for _ in made:
        claim(engine)
    execute(engine, "UPDATE jobs SET state = 'running' WHERE state = 'starting'")
    execute(engine, "UPDATE attempts SET created_at = now() - interval '1 hour'")
    return made


def desired_changes_of(engine: Engine, job_ids: list[uuid.UUID]) -> list[str]:
    with system_session(engine) as session:
        return [jobs.get_job(session, job_id).desired for job_id in job_ids]
