"""The properties of a kind of job, with their defaults."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from zhub.models import Job
from zhub.queue import attempts, job_events
from zhub.queue.attempts import Released, Succeeded

Succeed = Callable[[Session, uuid.UUID, int, Mapping[str, Any]], None]
"""Moves an attempt's job to succeeded and writes its result: ``(session, job_id, fence, result)``."""


def success(write: Callable[[Session, Succeeded, Mapping[str, Any]], None] = lambda *_: None) -> Succeed:
    """A ``Succeed`` that moves the job to succeeded, adds an event, and calls ``write`` for the result's rows."""

    def succeed(session: Session, job_id: uuid.UUID, fence: int, result: Mapping[str, Any]) -> None:
        job = attempts.succeed(session, job_id, fence)
        job_events.add(session, job.org_id, job.id, "The job has succeeded.")
        write(session, job, result)

    return succeed


@dataclass(frozen=True)
class Kind:
    """A kind of job. Its functions get the session of the transaction that changes the job, and never commit.

    Each job, not its kind, says whether it shares a worker or requests several: ``pack_key``, ``workers``.
    """

    name: str
    pool: str | None
    """The workers that run it: ``torch``, shared fairly, or ``light``, without a limit; None: the scheduler ends it."""
    resumable: bool = False
    """It resumes from a checkpoint: it may be preempted, and paused when its organisation's budget is spent."""
    succeed: Succeed = success()
    failed: Callable[[Session, Released], None] = lambda _session, _job: None
    """Changes the rows that wait for the result: there will be none."""
    check_redrive: Callable[[Session, Job], None] = lambda _session, _job: None
    """Raises ConflictError if the dead job must not run again."""
    redriven: Callable[[Session, Job], None] = lambda _session, _job: None
    """Changes the rows that ``failed`` changed: there may be a result again."""
