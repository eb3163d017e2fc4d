"""What there is to say about a kind of job, with what holds unless a kind says otherwise."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from zhub.models import Job
from zhub.queue import attempts, job_events
from zhub.queue.attempts import Released, Succeeded

Succeed = Callable[[Session, uuid.UUID, int, Mapping[str, Any]], None]
"""Ends an attempt's job well and writes its result: ``(session, job_id, fence, result)``, in one transaction."""


def success(write: Callable[[Session, Succeeded, Mapping[str, Any]], None] = lambda *_: None) -> Succeed:
    """End the job, tell so, and ``write`` the result where it belongs."""

    def succeed(session: Session, job_id: uuid.UUID, fence: int, result: Mapping[str, Any]) -> None:
        job = attempts.succeed(session, job_id, fence)
        job_events.add(session, job.org_id, job.id, "The job has succeeded.")
        write(session, job, result)

    return succeed


@dataclass(frozen=True)
class Kind:
    """A kind of job. Functions get the session of the transaction that changes the job, and never commit.

    Whether a job shares its worker or takes several is not the kind's to say but the job's: ``pack_key``, ``workers``.
    """

    name: str
    pool: str | None
    """Which workers run it: ``torch``, shared fairly, or ``light``, beside others; None: the scheduler ends it."""
    resumable: bool = False
    """It goes on from a checkpoint: it may be preempted, and paused when its organisation's budget is used up."""
    succeed: Succeed = success()
    failed: Callable[[Session, Released], None] = lambda _session, _job: None
    """What waits for the result is told that there will be none."""
    check_redrive: Callable[[Session, Job], None] = lambda _session, _job: None
    """Raises ConflictError where the dead job must not run again."""
    redriven: Callable[[Session, Job], None] = lambda _session, _job: None
    """What waits for the result is told that there will be one after all."""
