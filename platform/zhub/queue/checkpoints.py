"""Checkpoints: what a training job can go on from, and what may answer requests before it has ended.

A worker stores a checkpoint's objects and then reports it; the row is written with that report. Each job keeps its
newest ``KEEP_CHECKPOINTS``. Row first, objects second, when one goes: a crash leaves objects to sweep, never a row
without its bytes. The newest checkpoint of a job that has not ended never goes, so a step is never written again
after its checkpoint was deleted. Functions take a Session and never commit; only ``sweep`` opens sessions of its own.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub import states
from zhub.database.sessions import system_session
from zhub.errors import ConflictError, NotFoundError, StoreError
from zhub.ids import new_id, public_id
from zhub.manifest import FileEntry
from zhub.models import Checkpoint, Job
from zhub.storage.keys import checkpoints_prefix
from zhub.storage.object_store import ObjectStore

KEEP_CHECKPOINTS = 3
SWEEP_AFTER = timedelta(minutes=1)  # who resolved its name a moment ago may still read it
SWEEP_BATCH = 20  # checkpoints in one sweep

log = logging.getLogger("zhub.checkpoints")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CheckpointReport(Schema):
    """The ``data`` of the event by which a worker says that a checkpoint is whole in the store."""

    model_config = ConfigDict(frozen=True)
    type: Literal["checkpoint"]
    step: Annotated[int, Field(ge=0, lt=2**31)]
    key_prefix: str
    digest: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    z: FileEntry
    metrics: dict[str, float]


def record(session: Session, org_id: uuid.UUID, job_id: uuid.UUID, fence: int, report: Mapping[str, Any]) -> None:
    """Write the row of a checkpoint that an attempt reports, and hide those that the policy no longer keeps.

    Raises:
        ValueError: the report lacks its shape, or names a place that is not the job's own.
    """
    found = CheckpointReport.model_validate(report)
    # What is under the prefix will be deleted some day: it must not reach beyond its job.
    if not found.key_prefix.startswith(f"{checkpoints_prefix(org_id, job_id)}/") or ".." in found.key_prefix:
        raise ValueError(f"checkpoint {found.step} of job {job_id} lies at '{found.key_prefix}', not within its job")
    session.execute(
        insert(Checkpoint)
        .values(
            id=new_id(),
            org_id=org_id,
            job_id=job_id,
            fence=fence,
            **found.model_dump(mode="json", exclude={"type"}),
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
    """The checkpoint from which the job's next attempt goes on, if it has one."""
    return session.scalar(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc())
        .limit(1)
    )


def list_checkpoints(
    session: Session, job_id: uuid.UUID, *, after: uuid.UUID | None, limit: int
) -> tuple[list[Checkpoint], bool]:
    """The job's checkpoints, newest first, and whether more follow. Paging goes on after one that was deleted.

    Raises:
        NotFoundError: there never was, or is no more, a checkpoint ``after``.
    """
    statement = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
    if after is not None:
        last = session.get(Checkpoint, after)
        if last is None or last.job_id != job_id:
            raise _missing(after)
        statement = statement.where(Checkpoint.step < last.step)
    found = list(session.scalars(statement.order_by(Checkpoint.step.desc()).limit(limit + 1)))
    return found[:limit], len(found) > limit


def delete_checkpoint(session: Session, job: Job, checkpoint_id: uuid.UUID) -> Checkpoint:
    """Hide a checkpoint of the job; the sweep removes its bytes. Deleting it again is an error.

    Raises:
        NotFoundError: the job has no such checkpoint.
        ConflictError: the job has not ended and would go on from this one.
    """
    found = session.get(Checkpoint, checkpoint_id)
    if found is None or found.job_id != job.id or found.deleted_at is not None:
        raise _missing(checkpoint_id)
    last = _newest(session, job.id)
    if job.state not in states.TERMINAL and last is not None and last.id == found.id:
        raise ConflictError(
            f"{public_id('checkpoint', found.id)} is the newest checkpoint of a job that has not ended: the job would "
            "go on from it. Cancel the job first, or delete it after the next one."
        )
    session.execute(update(Checkpoint).where(Checkpoint.id == found.id).values(deleted_at=func.now()))
    return found


def sweep(engine: Engine, store: ObjectStore, *, after: timedelta = SWEEP_AFTER) -> int:
    """Remove the objects of checkpoints that were deleted a while ago, then their rows; return how many.

    Needs no leader: doing it twice, or at the same time, does no harm. What the store refuses is left for next time.
    """
    with system_session(engine) as session:
        statement = select(Checkpoint.id, Checkpoint.key_prefix).where(Checkpoint.deleted_at <= func.now() - after)
        due = session.execute(statement.order_by(Checkpoint.deleted_at).limit(SWEEP_BATCH)).all()
    swept = []
    for checkpoint_id, prefix in due:
        try:
            _remove(store, store.keys(f"{prefix}/"))
        except StoreError as exc:
            extra = {"action": "sweep_postponed", "checkpoint_id": checkpoint_id}
            log.warning("checkpoint %s stays until the next sweep: %s", checkpoint_id, exc, extra=extra)
            break
        swept.append(checkpoint_id)
    if swept:
        with system_session(engine) as session:
            session.execute(delete(Checkpoint).where(Checkpoint.id.in_(swept)))
    return len(swept)


def _remove(store: ObjectStore, keys: Iterable[str]) -> None:
    for key in list(keys):
        store.delete(key)


def _missing(checkpoint_id: uuid.UUID) -> NotFoundError:
    return NotFoundError("checkpoint", public_id("checkpoint", checkpoint_id))
