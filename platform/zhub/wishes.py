"""What users want of a job, and how the leader settles it where no attempt has to be asked first.

Users write ``desired`` and nothing else, so a wish never races with the attempt: an active job's attempt sees it in
its next heartbeat, any other job is settled by the leader's next pass. Functions take a Session and never commit.
"""

import uuid

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from zhub import jobs, states
from zhub.errors import ConflictError
from zhub.models import Job


def request_cancel(session: Session, job_id: uuid.UUID) -> Job:
    """Ask for a job to be cancelled. Asking again is no error; asking a finished job is.

    Raises:
        ConflictError: the job has ended otherwise.
    """
    job = _wish(session, job_id, "cancel", instead_of=("run", "pause", "preempt"), message="Cancellation requested.")
    if job.state in (states.SUCCEEDED, states.FAILED):
        raise ConflictError(f"The job has already {job.state}; it cannot be cancelled.")
    return job


def request_pause(session: Session, job_id: uuid.UUID) -> Job:
    """Ask for a job to let go of its worker and keep its newest checkpoint. Asking again is no error.

    A job that finishes before its attempt has heard of the wish has succeeded all the same.

    Raises:
        ConflictError: the job has ended, or is being cancelled.
    """
    job = _wish(session, job_id, "pause", instead_of=("run", "preempt"), message="Pause requested.")
    _refuse_ended(job, "paused")
    return job


def request_resume(session: Session, job_id: uuid.UUID) -> Job:
    """Ask for a paused job to go on from its newest checkpoint. Asking again, or a job that runs, is no error.

    Raises:
        ConflictError: the job has ended, or is being cancelled.
    """
    job = _wish(session, job_id, "run", instead_of=("pause",), message="Resumption requested.")
    _refuse_ended(job, "resumed")
    return job


def settle(session: Session) -> None:
    """Do at once what is wanted of jobs that have no attempt. The leader calls this."""
    settle_cancelled(session)
    settle_paused(session)
    settle_resumed(session)


def settle_cancelled(session: Session) -> int:
    """End every job that was cancelled before an attempt began, or while it was paused."""
    before = (states.WAITING, states.QUEUED, states.ADMITTED, states.PAUSED)
    return _settle(session, before, "cancel", {"state": states.CANCELLED, "finished_at": func.now()})


def settle_paused(session: Session) -> int:
    """Lay aside every job that was paused before an attempt began."""
    return _settle(session, (states.QUEUED, states.ADMITTED), "pause", {"state": states.PAUSED})


def settle_resumed(session: Session) -> int:
    """Put every paused job that shall run again back into the queue, without a back-off: it did not fail."""
    return _settle(session, (states.PAUSED,), "run", {"state": states.QUEUED, "not_before": None})


def _wish(session: Session, job_id: uuid.UUID, wish: str, *, instead_of: tuple[str, ...], message: str) -> Job:
    """Write a wish where it replaces one of ``instead_of`` in a job that has not ended; return the job as it is now."""
    job = jobs.get_job(session, job_id)
    changed = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.state.not_in(states.TERMINAL), Job.desired.in_(instead_of))
        .values(desired=wish)
        .returning(Job.id)
    )
    if changed is not None:
        jobs.add_event(session, job.org_id, job_id, message)
    session.refresh(job)
    return job


def _refuse_ended(job: Job, what: str) -> None:
    if job.state in states.TERMINAL:
        ended = "been cancelled" if job.state == states.CANCELLED else job.state
        raise ConflictError(f"The job has already {ended}; it cannot be {what}.")
    if job.desired == "cancel":
        raise ConflictError(f"The job is being cancelled; it cannot be {what}.")


def _settle(session: Session, before: tuple[str, ...], desired: str, values: dict[str, object]) -> int:
    # Locked in one order: two passes of one moment, of a leader and of one just deposed, must not wait in a circle.
    due = select(Job.id).where(Job.state.in_(before), Job.desired == desired).order_by(Job.id).with_for_update()
    rows = session.execute(
        update(Job).where(Job.id.in_(due)).values(values).returning(Job.id, Job.org_id, Job.state)
    ).all()
    for row in rows:
        jobs.report_state(session, row.org_id, row.id, row.state)
    return len(rows)
