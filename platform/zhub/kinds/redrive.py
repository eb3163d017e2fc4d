"""Redrive: a job that failed or was cancelled is queued again, with a new retry budget and an event that says by whom.

These jobs are the queue's dead letters; they stay in the same table. A redriven job keeps its fence, so that an earlier
attempt cannot write. Functions take a Session and never commit.
"""

import uuid
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import ConflictError
from zhub.ids import public_id
from zhub.kinds import table
from zhub.models import Job, JobDependency, Organization
from zhub.queue import job_events, jobs

MAX_LISTED = 1000
MAX_REDRIVES = 100  # jobs in one pass of the leader
DEAD = (states.FAILED, states.CANCELLED)


@dataclass(frozen=True)
class DeadLetters:
    """Selects dead jobs; an attribute that is None matches all."""

    organization: str | None = None
    kind: str | None = None
    code: str | None = None
    """The code of the job's error."""
    ended_within: timedelta | None = None


def find(session: Session, which: DeadLetters) -> list[Job]:
    """The failed jobs that ``which`` selects, the oldest first. The session must see all tenants."""
    statement = select(Job).where(Job.state == states.FAILED, Job.kind.not_in(table.names().without_worker))
    if which.organization is not None:
        named = select(Organization.id).where(Organization.name == which.organization)
        statement = statement.where(Job.org_id.in_(named))
    if which.kind is not None:
        statement = statement.where(Job.kind == which.kind)
    if which.code is not None:
        statement = statement.where(Job.error["code"].astext == which.code)
    if which.ended_within is not None:
        statement = statement.where(Job.finished_at > func.now() - which.ended_within)
    return list(session.scalars(statement.order_by(Job.finished_at).limit(MAX_LISTED)))


def request(session: Session, job: Job, *, by: str) -> None:
    """Request that the leader redrives a dead job, which lists show again. A second request is no error.

    Raises:
        ConflictError: the job is not dead, or must not run again.
    """
    _check(session, job)
    requested = session.scalar(
        update(Job)
        .where(Job.id == job.id, Job.state.in_(DEAD), Job.desired != "redrive")
        .values(desired="redrive", archived_at=None)
        .returning(Job.id)
    )
    session.refresh(job)
    if requested is not None:
        job_events.add(session, job.org_id, job.id, "Redrive requested.", data={"type": "redrive", "by": by})
    elif job.desired != "redrive":
        raise _not_dead(job)


def process_redrives(session: Session) -> int:
    """Redrive the dead jobs for which this was requested; return how many were requested. The leader calls this."""
    requested = select(Job).where(text("desired = 'redrive' AND state IN ('failed', 'cancelled')"))
    dead_jobs = list(session.scalars(requested.order_by(Job.id).limit(MAX_REDRIVES).with_for_update()))
    for job in dead_jobs:
        if job.state not in DEAD:
            continue  # it depends on an earlier job of this list, and was queued again with that
        try:
            redrive(session, job)
        except ConflictError as exc:
            # The request was valid when it was made. One that cannot be met must not stop the leader's pass.
            session.execute(update(Job).where(Job.id == job.id).values(desired="run"))
            data = {"type": "redrive"}
            job_events.add(session, job.org_id, job.id, f"It is not queued again. {exc}", level="warn", data=data)
    return len(dead_jobs)


def redrive(session: Session, job: Job) -> None:
    """Queue a dead job again, and with it the jobs that were cancelled because they depend on it.

    A training resumes from its newest checkpoint, if it has one.

    Raises:
        ConflictError: the job is not dead, or must not run again.
    """
    _check(session, job)
    if not _revive(session, job):
        raise _not_dead(job)
    table.kind_of(job).redriven(session, job)


def _check(session: Session, job: Job) -> None:
    table.kind_of(job).check_redrive(session, job)
    other = jobs.find_by_dedup_key(session, job.project_id, job.dedup_key) if job.dedup_key is not None else None
    if other is not None and other.id != job.id:
        raise ConflictError(
            f"The job {public_id('fine-tuning job', other.id)}, which has not ended, has the same dedup_key."
        )


def _not_dead(job: Job) -> ConflictError:
    ended = f"has {job.state}" if job.state == states.SUCCEEDED else "has not ended"
    return ConflictError(f"The job {ended}: only a job that failed or was cancelled is queued again.")


def _revive(session: Session, job: Job) -> bool:
    """Move a dead job to queued or waiting, and with it its cancelled dependents; False if it is not dead.

    The failures so far move to ``forgiven_user_failures`` and ``forgiven_infra_failures``: failures before the last
    redrive.
    """
    state = session.scalar(
        text(
            """
            UPDATE jobs SET desired = 'run', error = NULL, finished_at = NULL, started_at = NULL, not_before = NULL,
                   user_failures = 0, forgiven_user_failures = forgiven_user_failures + user_failures,
                   infra_failures = 0, forgiven_infra_failures = forgiven_infra_failures + infra_failures,
                   ranked_at = now() - priority * cast(:head_start AS interval),
                   state = CASE WHEN kind = ANY(:without_worker) OR spec->'basis' = 'null' OR EXISTS (
                       SELECT 1 FROM job_dependencies d JOIN jobs n ON n.id = d.needs_job_id
                        WHERE d.job_id = jobs.id AND n.state <> 'succeeded') THEN 'waiting' ELSE 'queued' END
             WHERE id = :job AND state IN ('failed', 'cancelled') RETURNING state
            """
        ),
        {
            "job": job.id,
            "head_start": jobs.PRIORITY_HEAD_START,
            "without_worker": table.names().without_worker,
        },
    )
    session.refresh(job)
    if state is None:
        return False
    job_events.add(session, job.org_id, job.id, f"The job is {state} again.")
    for dependent in _cancelled_with(session, job.id):
        _revive(session, dependent)
    return True


def _cancelled_with(session: Session, job_id: uuid.UUID) -> list[Job]:
    """The jobs that were cancelled because this job, on which they depend, did not succeed."""
    statement = (
        select(Job)
        .join(JobDependency, JobDependency.job_id == Job.id)
        .where(
            JobDependency.needs_job_id == job_id,
            Job.state == states.CANCELLED,
            Job.error["code"].astext == "dependency_failed",
        )
    )
    return list(session.scalars(statement.order_by(Job.id)))
