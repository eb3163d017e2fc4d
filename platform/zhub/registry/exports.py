"""Expert versions in the forms that other software reads: a job writes the files, which are kept for a week.

Functions take a Session and never commit; only ``sweep`` opens sessions of its own.
"""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import Engine, Select, func, or_, select, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.admission import limits
from zhub.database.sessions import system_session
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, NotReadyError
from zhub.ids import public_id
from zhub.manifest import MANIFEST_FILE, FileEntry, Manifest
from zhub.models import BaseModel, ExpertExport, ExpertVersion, Job
from zhub.queue import jobs
from zhub.queue.attempts import Succeeded
from zhub.registry import base_models, versions
from zhub.registry.versions import VersionRecord
from zhub.specs import BaseModelSource, ExportFormat, ExportSpec, StoredFile
from zhub.storage.object_store import ObjectStore
from zhub.storage.sweeping import remove_each
from zhub.tenancy import quotas
from zhub.tenancy.keys import Caller

KEPT_FOR = timedelta(days=7)
SWEEP_AFTER_DELETION = timedelta(minutes=1)
SWEEP_BATCH = 20  # exports in one sweep

log = logging.getLogger("zhub.registry")


@dataclass(frozen=True)
class ExportRequest:
    """A version to export: by the name that the user gave, in a format, as a LoRA of at most a rank."""

    model: str
    format: ExportFormat
    rank: int | None
    cluster: str


class ExportReport(Schema):
    """A worker's report."""

    model_config = ConfigDict(frozen=True)
    key_prefix: str
    files: Annotated[list[FileEntry], Field(min_length=1)]
    facts: dict[str, Any]


@dataclass(frozen=True)
class ExportRecord:
    """An export with its job and its version."""

    export: ExpertExport
    job: Job
    version: VersionRecord


def create(session: Session, caller: Caller, request: ExportRequest) -> ExportRecord:
    """The export of a version: one that is there or on its way, or else a new job.

    Raises:
        NotFoundError: no such version. NotReadyError, ConflictError: its base is not usable, or has another basis now.
        InvalidRequestError: the format takes no rank, or would give away weights that are not the caller's.
        QuotaExceededError: a merged model would be more than the organisation may store.
    """
    if request.rank is not None and request.format != "lora":
        raise InvalidRequestError(
            f"Only a LoRA is of a rank that can be chosen, and the format is '{request.format}'. Leave 'rank' out.",
            param="rank",
        )
    limits.check_cluster(session, request.cluster, param="cluster")
    record = versions.get_version(session, caller.project_id, request.model)
    versions.require_whole(record)
    if request.format == "merged":
        _check_may_read(caller, record.base)
    # Requests for one version take turns, so that nothing is exported twice.
    session.execute(select(func.pg_advisory_xact_lock(record.version.id.int & (2**63 - 1))))
    versions.keep(session, [record])
    if (existing := session.execute(_usable(record, request)).first()) is not None:
        return ExportRecord(*existing, record)
    if request.format == "merged":
        quotas.check_bytes(session, caller.org_id, _base_bytes(record.base))
    basis = base_models.require_ready(record.base)
    manifest = Manifest.model_validate(record.version.manifest)
    if basis.basis_fingerprint != manifest.basis_fingerprint:
        raise ConflictError(
            f"{record.name} belongs to the basis {manifest.basis_fingerprint}, and the base '{record.base.name}' has "
            f"the basis {basis.basis_fingerprint} now."
        )
    spec = ExportSpec(
        name=record.name,
        digest=record.version.digest,
        files=_files(record.version, manifest),
        base=BaseModelSource.model_validate(record.base.source),
        basis=basis,
        format=request.format,
        rank=request.rank,
    )
    own: dict[str, Any] = {"org_id": caller.org_id, "project_id": caller.project_id}
    job = Job(
        kind="export",
        spec=spec.model_dump(mode="json"),
        base_model_id=record.base.id,
        cluster=request.cluster,
        asked_by=caller.key_id,
        **own,
    )
    jobs.enqueue(session, job, f"Export of {record.name} as {request.format} enqueued.")
    asked = {"format": request.format, "rank": request.rank}
    export = ExpertExport(version_id=record.version.id, job_id=job.id, **asked, **own)
    session.add(export)
    session.flush()
    return ExportRecord(export, job, record)


def get(session: Session, project_id: uuid.UUID, export_id: uuid.UUID) -> ExportRecord:
    """The project's export with this id. Raises NotFoundError."""
    statement = select(ExpertExport, Job).join(Job, Job.id == ExpertExport.job_id)
    row = session.execute(statement.where(ExpertExport.id == export_id)).one_or_none()
    if row is None or row.ExpertExport.project_id != project_id:
        raise NotFoundError("expert export", public_id("expert export", export_id))
    return ExportRecord(row.ExpertExport, row.Job, versions.by_id(session, [row.ExpertExport.version_id]).popitem()[1])


def file_key(record: ExportRecord, name: str) -> str:
    """Where the file of a finished export is.

    Raises:
        NotReadyError, ConflictError: the export is not finished, or its files are not kept any more.
        NotFoundError: it has no such file.
    """
    export = record.export
    if export.files is None:
        raise NotReadyError(f"The export is {record.job.state}; its files are there once it has succeeded.")
    if name not in {file["name"] for file in export.files}:
        raise NotFoundError("file", name)
    if export.swept_at is not None or record.version.version.deleted_at is not None:
        raise ConflictError("The files of this export are not kept any more. Export the version again.")
    return f"{export.key_prefix}/{name}"


def finish(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    """Write what was exported, in the transaction that ends the job. Raises ValueError for a malformed report."""
    report = ExportReport.model_validate(result)
    session.execute(update(ExpertExport).where(ExpertExport.job_id == job.id).values(report.model_dump(mode="json")))


def check_redrive(session: Session, job: Job) -> None:
    """Raise ConflictError where the version was deleted since."""
    of_job = select(ExpertExport.version_id).where(ExpertExport.job_id == job.id)
    deleted = select(ExpertVersion.id).where(ExpertVersion.id.in_(of_job), ExpertVersion.deleted_at.is_not(None))
    if session.scalar(deleted) is not None:
        raise ConflictError("The version that it exports was deleted since.")


def sweep(engine: Engine, store: ObjectStore, *, kept: timedelta = KEPT_FOR) -> int:
    """Remove the objects of exports that are older than ``kept``, or whose version was deleted; return of how many.

    Needs no leader, as ``deletion.sweep``.
    """
    with system_session(engine) as session:
        exports = session.scalars(due(kept)).all()
    swept = remove_each(log, "export", [(export.id, partial(_remove, store, export)) for export in exports])
    if swept:
        with system_session(engine) as session:
            session.execute(update(ExpertExport).where(ExpertExport.id.in_(swept)).values(swept_at=func.now()))
    return len(swept)


def _remove(store: ObjectStore, export: ExpertExport) -> None:
    for file in export.files or []:
        store.delete(f"{export.key_prefix}/{file['name']}")


def due(kept: timedelta) -> Select[ExpertExport]:
    """The exports that a sweep takes on: ended, and too old or of a version that was deleted."""
    deleted = ExpertVersion.deleted_at <= func.now() - SWEEP_AFTER_DELETION
    return (
        select(ExpertExport)
        .join(Job, Job.id == ExpertExport.job_id)
        .join(ExpertVersion, ExpertVersion.id == ExpertExport.version_id)
        .where(ExpertExport.swept_at.is_(None), Job.finished_at.is_not(None))
        .where(or_(Job.finished_at <= func.now() - kept, deleted))
        .order_by(ExpertExport.created_at)
        .limit(SWEEP_BATCH)
    )


def _usable(record: VersionRecord, request: ExportRequest) -> Select[ExpertExport, Job]:
    """An export of the same that will not be swept before it is fetched, the newest first."""
    return (
        select(ExpertExport, Job)
        .join(Job, Job.id == ExpertExport.job_id)
        .where(ExpertExport.version_id == record.version.id, ExpertExport.swept_at.is_(None))
        .where(ExpertExport.format == request.format, ExpertExport.rank.is_not_distinct_from(request.rank))
        .where(Job.state.not_in((states.FAILED, states.CANCELLED)), Job.desired.not_in(("cancel",)))
        .where(or_(Job.finished_at.is_(None), Job.finished_at > func.now() - KEPT_FOR / 2))
        .order_by(ExpertExport.id.desc())
    )


def _check_may_read(caller: Caller, base: BaseModel) -> None:
    """A merged model is the base with a few matrices changed: it goes to who may have the base.

    Raises:
        InvalidRequestError: the base is of files that another organisation has added.
    """
    if BaseModelSource.model_validate(base.source).hub_id is None and base.owner_org_id != caller.org_id:
        raise InvalidRequestError(
            f"A merged model holds the weights of the base '{base.name}', which were added by another organisation and "
            "are not given out. Export the version as 'lora', which holds none of them.",
            param="format",
        )


def _base_bytes(base: BaseModel) -> int:
    """What a merged model takes; of a base of the hub, whose files are not listed here, in half precision."""
    files = BaseModelSource.model_validate(base.source).files
    return sum(file.size_bytes for file in files) or 2 * int(base.details.get("parameters") or 0)


def _files(version: ExpertVersion, manifest: Manifest) -> list[StoredFile]:
    own = FileEntry(name=MANIFEST_FILE, size_bytes=len(manifest.canonical()), sha256=version.digest)
    return [StoredFile(key=f"{version.key_prefix}/{file.name}", **file.model_dump()) for file in (own, *manifest.files)]
