"""Checkpoints: a training job resumes from its newest one, and each one can serve requests before the job has ended.

A worker stores a checkpoint's objects and then reports the checkpoint; that report writes the row. Each job keeps its
newest ``KEEP_CHECKPOINTS``. Deletion marks the row first and removes the objects second: a crash leaves objects to
sweep, never a row without its objects. The newest checkpoint of a job that has not ended is never deleted, so a step is
never written again after its checkpoint was deleted. Functions take a Session and never commit; only ``sweep`` opens
sessions of its own.
"""

import logging
import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub import states
from zhub.database.sessions import system_session
from zhub.errors import ConflictError, NotFoundError
from zhub.ids import new_id, public_id
from zhub.manifest import FileEntry
from zhub.models import Checkpoint, Job
from zhub.storage.keys import checkpoints_prefix
from zhub.storage.object_store import ObjectStore
from zhub.storage.sweeping import remove_each

KEEP_CHECKPOINTS = 3
SWEEP_AFTER = timedelta(minutes=1)  # a reader that resolved its name a moment ago may still read it
SWEEP_BATCH = 20  # checkpoints in one sweep

log = logging.getLogger("zhub.checkpoints")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CheckpointReport(Schema):
    """The ``data`` of the event by which a worker reports that a checkpoint is completely stored."""

    model_config = ConfigDict(frozen=True)
    type: Literal["checkpoint"]
    step: Annotated[int, Field(ge=0, lt=2**31)]
    key_prefix: str
    digest: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    z: FileEntry
    metrics: dict[str, float]


def record(session: Session, org_id: uuid.UUID, job_id: uuid.UUID, fence: int, report: Mapping[str, Any]) -> None:
    """Write the row of a checkpoint that an attempt reports, and mark older ones beyond the limit as deleted.

    Raises:
        ValueError: the report is malformed, or its key prefix is not within the job's prefix.
    """
    checkpoint = CheckpointReport.model_validate(report)
    # A sweep deletes all objects under the prefix: it must not reach beyond the job's own objects.
    if not checkpoint.key_prefix.startswith(f"{checkpoints_prefix(org_id, job_id)}/") or ".." in checkpoint.key_prefix:
        raise ValueError(
            f"checkpoint {checkpoint.step} of job {job_id} lies at '{checkpoint.key_prefix}', not within its job"
        )
    session.execute(
        insert(Checkpoint)
        .values(
            id=new_id(),
            org_id=org_id,
            job_id=job_id,
            fence=fence,
            **checkpoint.model_dump(mode="json", exclude={"type"}),
        )
        .on_conflict_do_nothing()
    )
    kept = (
        select(Checkpoint.id)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc())
        .limit(KEEP_CHECKPOINTS)
    )
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None), Checkpoint.id.not_in(kept))
        .values(deleted_at=func.now())
        .execution_options(synchronize_session=False)
    )


def _newest(session: Session, job_id: uuid.UUID) -> Checkpoint | None:
    """The checkpoint from which the job's next attempt resumes; None if there is none."""
    return session.scalar(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc())
        .limit(1)
    )


def list_checkpoints(
    session: Session, job_id: uuid.UUID, *, after: uuid.UUID | None, limit: int
) -> tuple[list[Checkpoint], bool]:
    """The job's checkpoints, newest first, and whether there are more. ``after`` may be a deleted checkpoint.

    Raises:
        NotFoundError: the job has no checkpoint ``after``, or its row has been swept.
    """
    statement = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
    if after is not None:
        last = session.get(Checkpoint, after)
        if last is None or last.job_id != job_id:
            raise _missing(after)
        statement = statement.where(Checkpoint.step < last.step)
    checkpoints = list(session.scalars(statement.order_by(Checkpoint.step.desc()).limit(limit + 1)))
    return checkpoints[:limit], len(checkpoints) > limit


def delete_checkpoint(session: Session, job: Job, checkpoint_id: uuid.UUID) -> Checkpoint:
    """Mark a checkpoint of the job as deleted; ``sweep`` removes its objects. Deleting it twice is an error.

    Raises:
        NotFoundError: the job has no such checkpoint.
        ConflictError: the job has not ended and would resume from this checkpoint.
    """
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None or checkpoint.job_id != job.id or checkpoint.deleted_at is not None:
        raise _missing(checkpoint_id)
    newest = _newest(session, job.id)
    if job.state not in states.TERMINAL and newest is not None and newest.id == checkpoint.id:
        raise ConflictError(
            f"{public_id('checkpoint', checkpoint.id)} is the newest checkpoint of a job that has not ended: the job "
            "would go on from it. Cancel the job first, or delete it after the next one."
        )
    session.execute(update(Checkpoint).where(Checkpoint.id == checkpoint.id).values(deleted_at=func.now()))
    return checkpoint


def sweep(engine: Engine, store: ObjectStore, *, after: timedelta = SWEEP_AFTER) -> int:
    """Remove the objects of checkpoints that were deleted more than ``after`` ago, then their rows; return how many.

    Needs no leader: two sweeps, also at the same time, do no harm. If the store fails, the next sweep removes the rest.
    """
    with system_session(engine) as session:
        statement = select(Checkpoint.id, Checkpoint.key_prefix).where(Checkpoint.deleted_at <= func.now() - after)
        due = session.execute(statement.order_by(Checkpoint.deleted_at).limit(SWEEP_BATCH)).all()
    objects = [(id_, partial(_remove, store, prefix)) for id_, prefix in due]
    swept = remove_each(log, "checkpoint", objects)
    if swept:
        with system_session(engine) as session:
            session.execute(delete(Checkpoint).where(Checkpoint.id.in_(swept)))
    return len(swept)


def _remove(store: ObjectStore, prefix: str) -> None:
    for key in list(store.keys(f"{prefix}/")):
        store.delete(key)


def _missing(checkpoint_id: uuid.UUID) -> NotFoundError:
    return NotFoundError("checkpoint", public_id("checkpoint", checkpoint_id))
