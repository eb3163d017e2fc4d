"""Users request a change of a job; the leader applies the request if the job has no attempt.

Users write only ``desired``, so a request never races with an attempt's end. The attempt of an active job receives
``desired`` with its next heartbeat; the leader's next pass applies it to any other job. Functions take a Session and
never commit.
"""

import uuid

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import ConflictError
from zhub.models import Job
from zhub.queue import attempts, job_events, jobs

MAX_CHANGES = 500  # jobs in one pass of the leader


def request_cancel(session: Session, job_id: uuid.UUID) -> Job:
    """Request that a job is cancelled. For a cancelled job, withdraw the request to redrive it.

    A second request is no error.

    Raises:
        ConflictError: the job has succeeded or failed.
    """
    org_id = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.state == states.CANCELLED, Job.desired == "redrive")
        .values(desired="cancel")
        .returning(Job.org_id)
    )
    if org_id is not None:
        job_events.add(session, org_id, job_id, "The redrive is withdrawn.", data={"type": "redrive"})
    job = _set_desired(
        session, job_id, "cancel", instead_of=("run", "pause", "preempt"), message="Cancellation requested."
    )
    if job.state in (states.SUCCEEDED, states.FAILED):
        raise ConflictError(f"The job has already {job.state}; it cannot be cancelled.")
    return job


def request_pause(session: Session, job_id: uuid.UUID) -> Job:
    """Request that a job leaves its worker and keeps its newest checkpoint. A second request is no error.

    A job may still succeed before its attempt receives the request.

    Raises:
        ConflictError: the job has ended, or is being cancelled.
    """
    job = _set_desired(session, job_id, "pause", instead_of=("run", "preempt"), message="Pause requested.")
    _refuse_ended(job, "paused")
    return job


def request_resume(session: Session, job_id: uuid.UUID) -> Job:
    """Request that a paused job resumes from its newest checkpoint. No error for a job that is not paused.

    Raises:
        ConflictError: the job has ended, or is being cancelled.
    """
    job = _set_desired(session, job_id, "run", instead_of=("pause",), message="Resumption requested.")
    _refuse_ended(job, "resumed")
    return job


def apply_requested_changes(session: Session) -> int:
    """Cancel, pause or queue again the jobs without an attempt for which this was requested; return how many.

    A resumed job is queued without a back-off, because it did not fail. The leader calls this.
    """
    rows = session.execute(text(_APPLY), {"limit": MAX_CHANGES}).all()
    for row in rows:
        attempts.report_state(session, row.org_id, row.id, row.state)
    return len(rows)


# Each line of what is due is what a partial index has, so that a long queue costs nothing. Locked in one order: two
# passes of one moment, of a leader and of one just deposed, must not wait in a circle.
# Plan at 10^6 jobs: bitmaps of ix_jobs_wish and ix_jobs_paused, then each job by its key; 200 rows, 2 ms.
_APPLY = """
    UPDATE jobs SET state = CASE desired WHEN 'cancel' THEN 'cancelled' WHEN 'pause' THEN 'paused' ELSE 'queued' END,
           finished_at = CASE WHEN desired = 'cancel' THEN now() END,
           not_before = CASE WHEN state = 'paused' THEN NULL ELSE not_before END
     WHERE id IN (SELECT id FROM jobs
                   WHERE desired = 'cancel' AND state IN ('waiting', 'queued', 'admitted')
                      OR desired = 'pause' AND state IN ('queued', 'admitted')
                      OR desired IN ('cancel', 'run') AND state = 'paused'
                   ORDER BY id LIMIT :limit FOR UPDATE)
 RETURNING id, org_id, state
"""


def _set_desired(
    session: Session, job_id: uuid.UUID, desired: str, *, instead_of: tuple[str, ...], message: str
) -> Job:
    """Set ``desired`` of a job that has not ended, if it is one of ``instead_of``; return the job as it is now."""
    job = jobs.get_job(session, job_id)
    changed = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.state.not_in(states.TERMINAL), Job.desired.in_(instead_of))
        .values(desired=desired)
        .returning(Job.id)
    )
    if changed is not None:
        job_events.add(session, job.org_id, job_id, message)
    session.refresh(job)
    return job


def _refuse_ended(job: Job, what: str) -> None:
    if job.state in states.TERMINAL:
        ended = "been cancelled" if job.state == states.CANCELLED else job.state
        raise ConflictError(f"The job has already {ended}; it cannot be {what}.")
    if job.desired == "cancel":
        raise ConflictError(f"The job is being cancelled; it cannot be {what}.")
