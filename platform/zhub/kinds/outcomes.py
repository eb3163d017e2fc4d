"""Records the end of an attempt and the changes of other rows that follow from it, in the caller's transaction."""

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy.orm import Session

from zhub import states
from zhub.kinds.table import kind_of
from zhub.queue import attempts, jobs, reaper
from zhub.queue.attempts import Failure, Released


def record_success(session: Session, job_id: uuid.UUID, fence: int, result: Mapping[str, Any]) -> str:
    """Write an attempt's result and the end of its job; return the job's state.

    Raises:
        LeaseLostError: another attempt owns the job, or it was cancelled; nothing is written.
        KeyError, ValueError: the result is malformed.
    """
    kind_of(jobs.get_job(session, job_id)).succeed(session, job_id, fence, result)
    return states.SUCCEEDED


def record_failure(
    session: Session, job_id: uuid.UUID, fence: int, failure: Failure, *, outcome: str = "failed_user"
) -> str:
    """Write an attempt's failure as ``attempts.fail`` does; return the job's next state."""
    return _apply(session, attempts.fail(session, job_id, fence, failure, outcome=outcome))


def record_loss(
    session: Session, job_id: uuid.UUID, fence: int, *, died_on: str | None = None, nodes: Collection[str] = ()
) -> str:
    """Write the loss of an attempt's worker as ``attempts.lose`` does; return the job's next state."""
    return _apply(session, attempts.lose(session, job_id, fence, died_on=died_on, nodes=nodes))


def record_stop(session: Session, job_id: uuid.UUID, fence: int) -> str:
    """Write that an attempt has stopped as ``attempts.stopped`` does; return the job's next state."""
    return _apply(session, attempts.stopped(session, job_id, fence))


def reap(session: Session) -> list[Released]:
    """End the attempts of jobs whose lease has run out, as ``reaper.reap`` does. The leader calls this."""
    reaped = reaper.reap(session)
    for job in reaped:
        _apply(session, job)
    return reaped


def _apply(session: Session, job: Released) -> str:
    if job.state == states.FAILED:
        kind_of(job).failed(session, job)
    return job.state
