"""What users want of a job, and how the leader settles it where no attempt has to be asked first.

Users write ``desired`` and nothing else, so a wish never races with the attempt: an active job's attempt sees it in
its next heartbeat, any other job is settled by the leader's next pass. Functions take a Session and never commit.
"""

import uuid

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import ConflictError
from zhub.models import Job
from zhub.queue import attempts, job_events, jobs

MAX_SETTLED = 500  # in one pass of the leader


def request_cancel(session: Session, job_id: uuid.UUID) -> Job:
    """Ask for a job to be cancelled, or for a cancelled one not to be queued again after all.

    Asking again is no error; asking a finished job is.

    Raises:
        ConflictError: the job has ended otherwise.
    """
    org_id = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.state == states.CANCELLED, Job.desired == "redrive")
        .values(desired="cancel")
        .returning(Job.org_id)
    )
    if org_id is not None:
        job_events.add(session, org_id, job_id, "The redrive is withdrawn.", data={"type": "redrive"})
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


def apply_requested_changes(session: Session) -> int:
    """Do at once what is wanted of jobs that have no attempt: end them, lay them aside, or queue them again.

    A job that was paused goes on without a back-off: it did not fail. The leader calls this.
    """
    rows = session.execute(text(_SETTLE), {"limit": MAX_SETTLED}).all()
    for row in rows:
        attempts.report_state(session, row.org_id, row.id, row.state)
    return len(rows)


# Each line of what is due is what a partial index has, so that a long queue costs nothing. Locked in one order: two
# passes of one moment, of a leader and of one just deposed, must not wait in a circle.
# Plan at 10^6 jobs: bitmaps of ix_jobs_wish and ix_jobs_paused, then each job by its key; 200 rows, 2 ms.
_SETTLE = """
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
        job_events.add(session, job.org_id, job_id, message)
    session.refresh(job)
    return job


def _refuse_ended(job: Job, what: str) -> None:
    if job.state in states.TERMINAL:
        ended = "been cancelled" if job.state == states.CANCELLED else job.state
        raise ConflictError(f"The job has already {ended}; it cannot be {what}.")
    if job.desired == "cancel":
        raise ConflictError(f"The job is being cancelled; it cannot be {what}.")
