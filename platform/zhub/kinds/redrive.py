"""Redrive: a job that failed or was cancelled is queued again, with a new retry budget and an event that says by whom.

The dead letters of the queue are these jobs; nothing is moved anywhere. A fence goes on where it was, so an attempt
from before cannot write. Functions take a Session and never commit.
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
MAX_SETTLED = 100  # in one pass of the leader
DEAD = (states.FAILED, states.CANCELLED)


@dataclass(frozen=True)
class DeadLetters:
    """Which dead jobs are meant; what is None does not matter."""

    organization: str | None = None
    kind: str | None = None
    code: str | None = None
    """Of the error."""
    ended_within: timedelta | None = None


def find(session: Session, which: DeadLetters) -> list[Job]:
    """Failed jobs that these words describe, the oldest first. The session must see all tenants."""
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
    """Ask for a dead job to be queued again; the leader does it. Asking again is no error.

    Raises:
        ConflictError: the job is not dead, or is one that is not run again.
    """
    _check(session, job)
    asked = session.scalar(
        update(Job)
        .where(Job.id == job.id, Job.state.in_(DEAD), Job.desired != "redrive")
        .values(desired="redrive")
        .returning(Job.id)
    )
    session.refresh(job)
    if asked is not None:
        job_events.add(session, job.org_id, job.id, "Redrive requested.", data={"type": "redrive", "by": by})
    elif job.desired != "redrive":
        raise _not_dead(job)


def process_redrives(session: Session) -> int:
    """Queue the jobs again that somebody asked for. The leader calls this."""
    wanted = select(Job).where(text("desired = 'redrive' AND state IN ('failed', 'cancelled')"))
    found = list(session.scalars(wanted.order_by(Job.id).limit(MAX_SETTLED).with_for_update()))
    for job in found:
        if job.state not in DEAD:
            continue  # it waited for one that was before it, and has come back with that
        try:
            redrive(session, job)
        except ConflictError as exc:
            # It could be when it was asked for. What cannot be done must not keep the leader from all else.
            session.execute(update(Job).where(Job.id == job.id).values(desired="run"))
            told = {"type": "redrive"}
            job_events.add(session, job.org_id, job.id, f"It is not queued again. {exc}", level="warn", data=told)
    return len(found)


def redrive(session: Session, job: Job) -> None:
    """Queue a dead job again, and with it those that were cancelled because they waited for it.

    A training goes on from its newest checkpoint, where it left one.

    Raises:
        ConflictError: the job is not dead, or is one that is not run again.
    """
    _check(session, job)
    if not _revive(session, job):
        raise _not_dead(job)
    table.KINDS[job.kind].redriven(session, job)


def _check(session: Session, job: Job) -> None:
    table.KINDS[job.kind].check_redrive(session, job)
    other = jobs.find_by_dedup_key(session, job.project_id, job.dedup_key) if job.dedup_key is not None else None
    if other is not None and other.id != job.id:
        raise ConflictError(
            f"The job {public_id('fine-tuning job', other.id)}, which has not ended, has the same dedup_key."
        )


def _not_dead(job: Job) -> ConflictError:
    ended = f"has {job.state}" if job.state == states.SUCCEEDED else "has not ended"
    return ConflictError(f"The job {ended}: only a job that failed or was cancelled is queued again.")


def _revive(session: Session, job: Job) -> bool:
    """Move a dead job back to where it began, and what was cancelled with it; False if it is not dead."""
    state = session.scalar(
        text(
            """
            UPDATE jobs SET desired = 'run', error = NULL, finished_at = NULL, started_at = NULL, not_before = NULL,
                   user_failures = 0, forgiven_user_failures = forgiven_user_failures + user_failures,
                   infra_failures = 0, forgiven_infra_failures = forgiven_infra_failures + infra_failures,
                   ranked_at = now() - priority * cast(:head_start AS interval),
                   state = CASE WHEN kind = ANY(:without_worker) OR EXISTS (
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
