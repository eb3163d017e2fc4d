"""The rows of jobs: adding a job to the queue, and finding a job. Functions take a Session and never commit."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import NotFoundError
from zhub.ids import public_id
from zhub.models import Job
from zhub.process import tracing
from zhub.queue import job_events

PRIORITY_HEAD_START = timedelta(minutes=10)
MAX_PRIORITY = 9


@dataclass(frozen=True)
class KindNames:
    """The kinds of jobs that SQL statements treat differently; ``zhub.kinds.table`` has the kinds."""

    light: Sequence[str]
    """Jobs of these kinds run on a worker without torch, and use no worker of their cluster."""
    resumable: Sequence[str]
    """Jobs of these kinds can stop at any time and resume from a checkpoint."""
    without_worker: Sequence[str]
    """Jobs of these kinds are never queued: the scheduler ends them."""


def enqueue(session: Session, job: Job, message: str) -> None:
    """Add a job in the state ``queued``, with its first event, in the caller's transaction and trace."""
    # A priority is only a head start, so that jobs with a low priority start later but never starve.
    job.ranked_at = func.now() - (job.priority or 0) * PRIORITY_HEAD_START
    job.traceparent = tracing.traceparent()
    session.add(job)
    session.flush()
    job_events.add(session, job.org_id, job.id, message)


def get_job(session: Session, job_id: uuid.UUID) -> Job:
    """The job with this id among those that the session may see. Raises NotFoundError."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError("fine-tuning job", public_id("fine-tuning job", job_id))
    return job


def find_by_dedup_key(session: Session, project_id: uuid.UUID, dedup_key: str) -> Job | None:
    """The job of the project that has this key and has not ended; None if there is none."""
    return session.scalar(
        select(Job).where(Job.project_id == project_id, Job.dedup_key == dedup_key, Job.state.not_in(states.TERMINAL))
    )
