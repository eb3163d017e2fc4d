"""Deletion of experts and versions: refused while something needs them. The row of a version stays, its bytes do not.

The row keeps the number taken, and the name for what refers to it: jobs, evaluations, moves of aliases. The objects are
removed a minute later by ``sweep``: whoever resolved the name a moment ago may still read them. Functions take a
Session and never commit; only ``sweep`` opens sessions of its own.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy import ColumnElement, Engine, Select, and_, func, select, update
from sqlalchemy.orm import Session, aliased

from zhub.database.sessions import system_session
from zhub.errors import ConflictError
from zhub.ids import public_id
from zhub.manifest import MANIFEST_FILE
from zhub.models import Attestation, Checkpoint, Expert, ExpertGrant, ExpertVersion, Job
from zhub.registry import metadata, needs
from zhub.registry.versions import VersionRecord
from zhub.storage.object_store import ObjectStore
from zhub.storage.sweeping import remove_each
from zhub.tenancy.keys import Caller

SWEEP_AFTER = timedelta(minutes=1)
SWEEP_BATCH = 20  # versions in one sweep
DELETED = {"deleted": {"from": False, "to": True}}

log = logging.getLogger("zhub.registry")


def delete_version(session: Session, caller: Caller, record: VersionRecord, *, detach: bool = False) -> None:
    """Delete a version. Its number is never given again. ``detach``: what needs it is detached.

    Raises:
        ConflictError: an alias points to it, a release pins it, or a schedule or a job that has not ended needs it.
    """
    _delete_versions(session, caller, record.expert, ExpertVersion.id == record.version.id, detach=detach)
    metadata.record(session, caller, record.expert, record.version, DELETED)


def delete_expert(session: Session, caller: Caller, expert: Expert, *, detach: bool = False) -> None:
    """Delete an expert with all its versions and checkpoints. A training under its name begins it again.

    Raises:
        ConflictError: one of its versions is needed, as above, or a job that has not ended or a schedule trains it.
    """
    of_expert = ExpertVersion.expert_id == expert.id
    if detach:
        needs.detach(session, needs.of_expert(session, expert), f"The expert '{expert.name}' was deleted.")
        _detach(session, caller, expert, of_expert)
    # The versions before the expert, as feedback, aliases and trainings do: otherwise they lock each other out.
    needs.lock(session, of_expert)
    session.refresh(expert, with_for_update=True)  # no training into it is submitted meanwhile
    needs.refuse(needs.of_expert(session, expert))
    _delete_versions(session, caller, expert, of_expert, detach=False)
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
        signed = select(Attestation.version_id, Attestation.key)
        signatures = dict(session.execute(signed.where(Attestation.version_id.in_([v.id for v in versions]))).all())

    def remove(version: ExpertVersion) -> None:
        if version.id not in kept:
            _remove(store, version, signatures.get(version.id))

    swept = remove_each(log, "version", [(version.id, partial(remove, version)) for version in versions])
    if swept:
        with system_session(engine) as session:
            session.execute(update(ExpertVersion).where(ExpertVersion.id.in_(swept)).values(swept_at=func.now()))
    return len(swept)


def due(after: timedelta) -> Select[ExpertVersion]:
    """The versions that a sweep takes on: deleted so long ago, and not swept."""
    deleted = (ExpertVersion.deleted_at <= func.now() - after, ExpertVersion.swept_at.is_(None))
    return select(ExpertVersion).where(*deleted).order_by(ExpertVersion.deleted_at).limit(SWEEP_BATCH)


def _remove(store: ObjectStore, version: ExpertVersion, signature: str | None) -> None:
    if signature is not None:  # its row keeps the statement
        store.delete(signature)
    # The manifest last, which lists the others. The logs of the attempt lie beside them, and are the job's.
    for name in (*(file["name"] for file in version.manifest["files"]), MANIFEST_FILE):
        store.delete(f"{version.key_prefix}/{name}")


def _delete_versions(
    session: Session, caller: Caller, expert: Expert, which: ColumnElement[bool], *, detach: bool
) -> None:
    if detach:
        _detach(session, caller, expert, which)
    needs.lock(session, which)
    needs.refuse(needs.of_versions(session, expert, _kept(which), "delete", by=_by(caller)))
    session.execute(update(ExpertVersion).where(*_kept(which)).values(deleted_at=func.now()))


def _detach(session: Session, caller: Caller, expert: Expert, which: ColumnElement[bool]) -> None:
    needing = needs.of_versions(session, expert, _kept(which), "delete", by=_by(caller))
    needs.detach(session, needing, "A version that it needs was deleted.")


def _kept(which: ColumnElement[bool]) -> Sequence[ColumnElement[bool]]:
    return (which, ExpertVersion.deleted_at.is_(None))


def _by(caller: Caller) -> str:
    return public_id("API key", caller.key_id)
