"""Deletion of experts and versions: refused while something needs them. The row of a version stays, its bytes do not.

The row keeps the number taken, and the name for what refers to it: jobs, evaluations, moves of aliases. The objects are
removed a minute later by ``sweep``: whoever resolved the name a moment ago may still read them. Functions take a
Session and never commit; only ``sweep`` opens sessions of its own.
"""

import logging
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, Engine, Select, and_, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, aliased

from zhub import states
from zhub.database.sessions import system_session
from zhub.errors import ConflictError, StoreError
from zhub.ids import public_id
from zhub.manifest import MANIFEST_FILE
from zhub.models import (
    Alias,
    Checkpoint,
    Evaluation,
    Expert,
    ExpertGrant,
    ExpertVersion,
    Job,
    Project,
    Promotion,
    Schedule,
)
from zhub.registry import metadata, releases
from zhub.registry.versions import VersionRecord, find_version
from zhub.storage.object_store import ObjectStore
from zhub.tenancy.keys import Caller

SWEEP_AFTER = timedelta(minutes=1)
SWEEP_BATCH = 20  # versions in one sweep
DELETED = {"deleted": {"from": False, "to": True}}

log = logging.getLogger("zhub.registry")


def delete_version(session: Session, caller: Caller, record: VersionRecord) -> None:
    """Delete a version. Its number is never given again.

    Raises:
        ConflictError: an alias points to it, a release pins it, or a schedule or a job that has not ended needs it.
    """
    _delete_versions(session, record.expert, ExpertVersion.id == record.version.id)
    metadata.record(session, caller, record.expert, record.version, DELETED)


def delete_expert(session: Session, caller: Caller, expert: Expert) -> None:
    """Delete an expert with all its versions and checkpoints. A training under its name begins it again.

    Raises:
        ConflictError: one of its versions is needed, as above, or a job that has not ended or a schedule trains it.
    """
    of_expert = ExpertVersion.expert_id == expert.id
    # The versions before the expert, as feedback, aliases and trainings do: otherwise they lock each other out.
    _lock(session, of_expert)
    session.refresh(expert, with_for_update=True)  # no training into it is submitted meanwhile
    _refuse_trained(session, expert)
    _delete_versions(session, expert, of_expert)
    jobs = select(Job.id).where(Job.expert_id == expert.id)
    hidden = update(Checkpoint).where(Checkpoint.job_id.in_(jobs), Checkpoint.deleted_at.is_(None))
    session.execute(hidden.values(deleted_at=func.now()))
    session.execute(update(Expert).where(Expert.id == expert.id).values(deleted_at=func.now()))
    # A training under its name begins another expert, which nobody was given.
    given = update(ExpertGrant).where(
        ExpertGrant.expert_id == expert.id, ExpertGrant.status.in_(("requested", "active"))
    )
    by = public_id("API key", caller.key_id)
    session.execute(given.values(status="revoked", decided_by=by, ended_at=func.now()))
    metadata.record(session, caller, expert, None, DELETED)


def check_redrive(session: Session, job: Job) -> None:
    """Raise ConflictError where the expert that a dead job trains, or a version that it may begin from, was deleted."""
    starts = [start["digest"] for start in job.spec.get("starts", [])]
    gone = select(ExpertVersion.id).where(ExpertVersion.digest.in_(starts), ExpertVersion.deleted_at.is_not(None))
    expert = select(Expert.id).where(Expert.id == job.expert_id, Expert.deleted_at.is_not(None))
    if session.scalar(expert) is not None or session.scalar(gone.where(ExpertVersion.org_id == job.org_id)) is not None:
        raise ConflictError("What it trains, or may begin from, was deleted since. Submit the training again.")


def sweep(engine: Engine, store: ObjectStore, *, after: timedelta = SWEEP_AFTER) -> int:
    """Remove the objects of versions that were deleted more than ``after`` ago; return of how many.

    Needs no leader: two sweeps, also at the same time, do no harm. If the store fails, the next sweep removes the rest.
    """
    with system_session(engine) as session:
        versions = session.scalars(due(after)).all()
        other = aliased(ExpertVersion)
        is_same = and_(other.org_id == ExpertVersion.org_id, other.digest == ExpertVersion.digest)
        shared = select(ExpertVersion.id).join(other, is_same).where(other.deleted_at.is_(None))
        kept = set(session.scalars(shared.where(ExpertVersion.id.in_([version.id for version in versions]))))
    swept: list[uuid.UUID] = []
    for version in versions:
        try:
            if version.id not in kept:
                _remove(store, version)
        except StoreError as exc:
            extra = {"action": "sweep_postponed", "version_id": version.id}
            log.warning("version %s stays until the next sweep: %s", version.id, exc, extra=extra)
            break
        swept.append(version.id)
    if swept:
        with system_session(engine) as session:
            session.execute(update(ExpertVersion).where(ExpertVersion.id.in_(swept)).values(swept_at=func.now()))
    return len(swept)


def due(after: timedelta) -> Select[ExpertVersion]:
    """The versions that a sweep takes on: deleted so long ago, and not swept."""
    deleted = (ExpertVersion.deleted_at <= func.now() - after, ExpertVersion.swept_at.is_(None))
    return select(ExpertVersion).where(*deleted).order_by(ExpertVersion.deleted_at).limit(SWEEP_BATCH)


def _remove(store: ObjectStore, version: ExpertVersion) -> None:
    # The manifest last, which lists the others. The logs of the attempt lie beside them, and are the job's.
    for name in (*(file["name"] for file in version.manifest["files"]), MANIFEST_FILE):
        store.delete(f"{version.key_prefix}/{name}")


def _delete_versions(session: Session, expert: Expert, which: ColumnElement[bool]) -> None:
    versions = (which, ExpertVersion.deleted_at.is_(None))
    _lock(session, which)
    _refuse_needed(session, expert, versions)
    session.execute(update(ExpertVersion).where(*versions).values(deleted_at=func.now()))


def _lock(session: Session, which: ColumnElement[bool]) -> None:
    """Nothing comes to need these versions from here on: what does, locks their rows first (``versions.keep``)."""
    session.execute(select(ExpertVersion.id).where(which).order_by(ExpertVersion.id).with_for_update())


def _refuse_trained(session: Session, expert: Expert) -> None:
    """Raise ConflictError where a job that has not ended or a schedule trains the expert."""
    training = select(Job.id).where(Job.expert_id == expert.id, Job.finished_at.is_(None))
    if (job_id := session.scalar(training.limit(1))) is not None:
        job = public_id("fine-tuning job", job_id)
        raise ConflictError(f"{job} trains '{expert.name}' and has not ended. Wait for it, or cancel it.")
    by_feedback = select(Schedule).where(Schedule.feedback_expert_id == expert.id, Schedule.deleted_at.is_(None))
    for schedule in (*metadata.trained_by(session, expert), *session.scalars(by_feedback)):
        raise ConflictError(
            f"The schedule '{schedule.name}' trains '{expert.name}'. Remove the schedule first "
            "(DELETE /v1/schedules/{schedule_id})."
        )


def _refuse_needed(session: Session, expert: Expert, versions: Sequence[ColumnElement[bool]]) -> None:
    """Raise ConflictError, with what to do, where something needs one of these versions of an expert."""
    full_name = f"{session.get_one(Project, expert.project_id).name}.{expert.name}"
    numbers = select(ExpertVersion.version).where(*versions)
    pointing = numbers.add_columns(Alias.name).join(Alias, Alias.version_id == ExpertVersion.id)
    for number, alias in session.execute(pointing.limit(1)):
        raise ConflictError(
            f"'@{alias}' points to {full_name}@v{number}. Move it to another version "
            "(PUT /v1/experts/{expert}/aliases/{alias}), or remove it (DELETE /v1/experts/{expert}/aliases/{alias})."
        )
    numbers_by_id = dict(session.execute(select(ExpertVersion.id, ExpertVersion.version).where(*versions)).all())
    for version_id, release in releases.pinning(session, list(numbers_by_id))[:1]:
        raise ConflictError(
            f"The release {release.name} pins {full_name}@v{numbers_by_id[version_id]}. Delete that release version "
            "first (DELETE /v1/releases/{version}), or archive the expert version instead."
        )
    for number, gate_id in session.execute(_gates(numbers, expert).limit(1)):
        raise ConflictError(
            f"The gate of {public_id('promotion', gate_id)} decides about {full_name}@v{number}. Wait for it, or "
            "cancel it (POST /v1/promotions/{promotion_id}/cancel)."
        )
    for number, evaluation_id in session.execute(_evaluations(numbers, expert).limit(1)):
        raise ConflictError(
            f"{public_id('evaluation', evaluation_id)} measures {full_name}@v{number}. Wait until it has ended."
        )
    for number, job_id in _beginning(session, expert, versions):
        raise ConflictError(
            f"{public_id('fine-tuning job', job_id)} may begin from {full_name}@v{number}. Wait for it, or cancel it."
        )
    of_project = select(Schedule).where(Schedule.project_id == expert.project_id, Schedule.deleted_at.is_(None))
    for schedule in session.scalars(of_project.order_by(Schedule.name)):
        named = find_version(session, expert.project_id, str(schedule.request.get("model")))
        if named is not None and named.version.version in set(session.scalars(numbers)):
            raise ConflictError(
                f"The trainings of the schedule '{schedule.name}' begin from {named.name}. Remove the schedule first "
                "(DELETE /v1/schedules/{schedule_id})."
            )


def _gates(numbers: Select[int], expert: Expert) -> Select[int, uuid.UUID]:
    """Gates that are not decided, also of a training that has published and not been looked at since."""
    is_decided_for = or_(Promotion.version_id == ExpertVersion.id, Promotion.training_job_id == ExpertVersion.job_id)
    return (
        numbers.add_columns(Promotion.id)
        .join(Promotion, and_(Promotion.project_id == expert.project_id, is_decided_for))
        .join(Job, Job.id == Promotion.job_id)
        .where(Job.org_id == expert.org_id, Job.state == states.WAITING)
    )


def _evaluations(numbers: Select[int], expert: Expert) -> Select[int, uuid.UUID]:
    of_project = Evaluation.project_id == expert.project_id
    return (
        numbers.add_columns(Evaluation.id)
        .join(Evaluation, and_(of_project, Evaluation.version_id == ExpertVersion.id))
        .join(Job, Job.id == Evaluation.job_id)
        .where(Job.finished_at.is_(None))
    )


def _beginning(
    session: Session, expert: Expert, versions: Sequence[ColumnElement[bool]]
) -> Iterator[tuple[int, uuid.UUID]]:
    """Trainings that have not ended and may begin from one of the versions: (its number, the job)."""
    starts = Job.spec["starts"]
    live = select(Job.id, starts).where(
        Job.org_id == expert.org_id,
        Job.project_id == expert.project_id,
        Job.kind == "train",
        Job.finished_at.is_(None),
        starts != cast([], JSONB),
    )
    jobs = {start["digest"]: job_id for job_id, listed in session.execute(live) for start in listed or []}
    if not jobs:
        return
    of_digest = select(ExpertVersion.version, ExpertVersion.digest)
    for number, digest in session.execute(of_digest.where(*versions, ExpertVersion.digest.in_(jobs))):
        yield number, jobs[digest]
