"""Datasets: an uploaded file becomes an immutable dataset version, checked by a job before anything trains on it."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.database import sessions
from zhub.datasets import usage
from zhub.datasets.validation import FOREIGN_FORMAT, MAX_PROBLEMS, Validation
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.ids import new_id, public_id
from zhub.models import Dataset, DatasetVersion, Job
from zhub.queue import jobs
from zhub.queue.attempts import Released, Succeeded
from zhub.specs import StoredFile, ValidateSpec
from zhub.storage.keys import dataset_key
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import name_of_file

PUSHED = "fine-tune"
EVALS, MADE = "evals", "user_data"
PURPOSES = (PUSHED, EVALS, MADE)
"""A file to fine-tune with is pushed as the newest data of its dataset. The others can be used in the same ways, and
are never new data: what an evaluation measures on, and what one request brings along."""


def check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        known = ", ".join(f"'{known}'" for known in PURPOSES)
        raise InvalidRequestError(f"'{purpose}' is not a purpose of ours. Known: {known}.", param="purpose")


def register(
    session: Session, caller: Caller, *, filename: str, purpose: str, size_bytes: int, sha256: str
) -> DatasetVersion:
    """Record a file whose bytes are already in the store, and enqueue its validation.

    The same file name in the same project makes the next version of the same dataset; the same bytes under it are the
    version that there is, unless that was deleted, is in error, or was not pushed while this one is.
    """
    dataset = _locked_dataset(session, caller.org_id, caller.project_id, dataset_name(filename))
    if (equal := _equal_version(session, dataset.id, purpose, sha256)) is not None:
        return equal
    version = _next_version(session, dataset, filename=filename, purpose=purpose, size_bytes=size_bytes, sha256=sha256)
    spec = ValidateSpec(file=stored_file(version))
    job = Job(
        org_id=caller.org_id,
        project_id=caller.project_id,
        kind="validate",
        spec=spec.model_dump(mode="json"),
        dataset_version_id=version.id,
    )
    jobs.enqueue(session, job, f"Validation of {filename} enqueued.")
    session.refresh(version)
    return version


def add_made(session: Session, job: Succeeded, *, filename: str, size_bytes: int, sha256: str) -> DatasetVersion:
    """The next version of a dataset, of a file that a job has made and stored; nobody's new data for schedules."""
    dataset = _locked_dataset(session, job.org_id, job.project_id, dataset_name(filename))
    return _next_version(session, dataset, filename=filename, purpose=MADE, size_bytes=size_bytes, sha256=sha256)


def _locked_dataset(session: Session, org_id: uuid.UUID, project_id: uuid.UUID, name: str) -> Dataset:
    session.execute(
        insert(Dataset)
        .values(id=new_id(), org_id=org_id, project_id=project_id, name=name, last_version=0)
        .on_conflict_do_nothing()
    )
    # The counter row also serialises concurrent uploads of one name: max(version) + 1 would collide.
    of_name = select(Dataset).where(Dataset.project_id == project_id, Dataset.name == name)
    return session.scalars(of_name.with_for_update().execution_options(populate_existing=True)).one()


def _next_version(
    session: Session, dataset: Dataset, *, filename: str, purpose: str, size_bytes: int, sha256: str
) -> DatasetVersion:
    dataset.last_version += 1
    version = DatasetVersion(
        id=new_id(),
        org_id=dataset.org_id,
        project_id=dataset.project_id,
        dataset_id=dataset.id,
        version=dataset.last_version,
        filename=filename,
        purpose=purpose,
        size_bytes=size_bytes,
        sha256=sha256,
        key=dataset_key(dataset.org_id, sha256),
    )
    session.add(version)
    session.flush()
    return version


def dataset_name(filename: str) -> str:
    """The name of the dataset that a file of this name is a version of."""
    return name_of_file(filename, default="dataset")


def is_new(session: Session, version: DatasetVersion) -> bool:
    """Whether this transaction has registered the version: a row has the time of its transaction."""
    return version.created_at == sessions.now(session)


def _equal_version(session: Session, dataset_id: uuid.UUID, purpose: str, sha256: str) -> DatasetVersion | None:
    """The newest version with these bytes, if this upload brings nothing new."""
    return session.scalar(
        select(DatasetVersion)
        .where(
            DatasetVersion.dataset_id == dataset_id,
            DatasetVersion.sha256 == sha256,
            DatasetVersion.purpose.in_((PUSHED, purpose)),
            DatasetVersion.status != "error",
            DatasetVersion.deleted_at.is_(None),
        )
        .order_by(DatasetVersion.version.desc())
        .limit(1)
    )


def stored_file(version: DatasetVersion) -> StoredFile:
    return StoredFile(name=version.filename, key=version.key, sha256=version.sha256, size_bytes=version.size_bytes)


def get(session: Session, project_id: uuid.UUID, version_id: uuid.UUID, *, param: str | None = None) -> DatasetVersion:
    """The file with this id in the project. Raises NotFoundError, also for a deleted one."""
    version = session.scalar(
        select(DatasetVersion).where(
            DatasetVersion.id == version_id,
            DatasetVersion.project_id == project_id,
            DatasetVersion.deleted_at.is_(None),
        )
    )
    if version is None:
        raise NotFoundError("file", public_id("file", version_id))
    return version


def list_files(
    session: Session,
    project_id: uuid.UUID,
    *,
    after: uuid.UUID | None,
    limit: int,
    oldest_first: bool = False,
    purpose: str | None = None,
    search: str | None = None,
) -> tuple[list[DatasetVersion], bool]:
    """The project's files, newest first unless ``oldest_first``, and whether more follow.

    ``search``: only those with this text in their name, whatever its case.
    """
    statement = select(DatasetVersion).where(
        DatasetVersion.project_id == project_id, DatasetVersion.deleted_at.is_(None)
    )
    if purpose is not None:
        statement = statement.where(DatasetVersion.purpose == purpose)
    if search is not None:
        statement = statement.where(DatasetVersion.filename.icontains(search, autoescape=True))
    column = DatasetVersion.id
    if after is not None:
        statement = statement.where(column > after if oldest_first else column < after)
    statement = statement.order_by(column.asc() if oldest_first else column.desc())
    versions = list(session.scalars(statement.limit(limit + 1)))
    return versions[:limit], len(versions) > limit


def delete(
    session: Session,
    project_id: uuid.UUID,
    version_id: uuid.UUID,
    *,
    also_trained: bool = False,
    detach: bool = False,
) -> None:
    """Hide a file. Its bytes stay while versions trained on it name their digest. ``detach``: see ``usage.detach``.

    Raises:
        ConflictError: something needs it, see ``usage.refuse_used``.
    """
    version = get(session, project_id, version_id)
    if detach:
        # Before the file is locked: who fires a schedule locks that before the files that it names.
        usage.detach(session, version)
    # A request that names it as well waits here, or is seen: a row that refers to this one locks it for its part.
    session.execute(select(DatasetVersion.id).where(DatasetVersion.id == version.id).with_for_update())
    usage.refuse_used(session, version, also_trained=also_trained)
    session.execute(update(DatasetVersion).where(DatasetVersion.id == version.id).values(deleted_at=func.now()))


def finish_validation(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    """The validation job has succeeded: the file is usable, or its report says why not."""
    if job.dataset_version_id is not None:
        write_validation(session, job.dataset_version_id, result["validation"])


def write_validation(session: Session, version_id: uuid.UUID, report: Mapping[str, Any]) -> None:
    """Write a ``validation_report`` beside its file."""
    ok = report["problem_count"] == 0
    session.execute(
        update(DatasetVersion)
        .where(DatasetVersion.id == version_id)
        .values(
            validation=report,
            status="processed" if ok else "error",
            status_details=None if ok else describe_problems(report),
        )
    )


def fail_validation(session: Session, job: Released) -> None:
    """The validation job has failed: the file cannot be used."""
    failed = {"status": "error", "status_details": f"The file could not be validated: {job.reason}"}
    session.execute(update(DatasetVersion).where(DatasetVersion.id == job.dataset_version_id).values(failed))


def restart_validation(session: Session, job: Job) -> None:
    """The validation job is queued again."""
    waiting = {"status": "uploaded", "status_details": None}
    failed = (DatasetVersion.id == job.dataset_version_id, DatasetVersion.status == "error")
    session.execute(update(DatasetVersion).where(*failed).values(waiting))


def validation_report(found: Validation) -> dict[str, Any]:
    """The form in which a validation travels from worker to row to API."""
    return asdict(found)


def describe_problems(found: Mapping[str, Any], *, shown: int = 5) -> str:
    """The first problems in words, one a line, for people."""
    count = found["problem_count"]
    if count and found["problems"][0]["code"] == FOREIGN_FORMAT:
        message: str = found["problems"][0]["message"]
        return f"{message[0].upper()}{message[1:]}."
    lines = [f"line {p['line']}: {p['message']}" for p in found["problems"][:shown]]
    if count > shown:
        lines.append(f"… and {count - shown} more (the first {min(count, MAX_PROBLEMS)} are in 'validation')")
    return "\n".join(lines)
