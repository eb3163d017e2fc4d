"""Datasets that a classifier expert is trained on: prompts of experts, each with the answer that stands for its expert.

The rows are made by a worker, of the rows that the experts were trained on: none that was held out, and none that an
evaluation uses. An ordinary training on them then makes the classifier. Functions take a Session and never commit.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from zhub.datasets import files
from zhub.datasets.validated import require_validated
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.ids import public_id
from zhub.models import ClassifiedExpert, DatasetVersion, ExpertVersion, Job
from zhub.queue import jobs
from zhub.queue.attempts import Succeeded
from zhub.registry import versions
from zhub.registry.versions import VersionRecord
from zhub.specs import ClassificationSpec, LabelledPrompts, PromptFiles, StoredFile
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name

KIND = "classification_rows"
OTHER = "other"  # the label of what is for none of the experts
MAX_LABELS = 16
MAX_EXCLUDED = 100  # the newest: a worker reads them all


class ClassificationRequest(Schema):
    """Make the dataset ``name`` of prompts of ``experts``; prompts of the files ``others`` are for none of them.

    Each label gets as many rows, at most ``rows_per_label``: those of the expert that has fewest decide.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    experts: Annotated[list[str], Field(min_length=1, max_length=MAX_LABELS)]
    others: Annotated[list[str], Field(max_length=MAX_LABELS)] = []
    rows_per_label: Annotated[int, Field(strict=True, ge=10, le=5000)] = 200
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**62)] = 0


class ClassificationReport(Schema):
    """A worker's report: the file that it stored, and how many rows each label has in it, ``other`` included."""

    model_config = ConfigDict(frozen=True)
    size_bytes: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")]
    rows: dict[str, int]
    validation: dict[str, Any]


class KnownExpert(NamedTuple):
    """An expert that a classifier tells apart from others: its name when the classifier's dataset was made."""

    label: str
    expert_id: uuid.UUID


class Classified(NamedTuple):
    """A label of a classifier's dataset: the version whose prompts have it, and how many of them."""

    label: str
    model: str
    rows: int


def create(session: Session, caller: Caller, request: ClassificationRequest) -> Job:
    """Enqueue the job that makes the rows.

    Raises:
        InvalidRequestError: an expert whose training rows nobody can read any more, or that cannot be told apart.
        NotFoundError, NotReadyError, InvalidDatasetError: a version or a file is missing or not usable.
    """
    check_name(request.name, "dataset", param="name")
    records = [versions.get_usable(session, caller.project_id, name) for name in request.experts]
    labels = [_labelled(session, caller, record) for record in records]
    _check_apart(records, labels)
    others = [_other(session, caller, file_id, labels) for file_id in request.others]
    spec = ClassificationSpec(
        name=request.name,
        labels=labels,
        others=others,
        excluded=_excluded(session, caller),
        rows_per_label=request.rows_per_label,
        seed=request.seed,
    )
    job = Job(
        org_id=caller.org_id, project_id=caller.project_id, kind=KIND, spec=spec.model_dump(mode="json"), request={}
    )
    jobs.enqueue(session, job, f"Rows of {', '.join(label.model for label in labels)} for a classifier enqueued.")
    session.refresh(job)
    return job


def get(session: Session, project_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The project's classification dataset with this id. Raises NotFoundError."""
    job = session.get(Job, job_id)
    if job is None or job.project_id != project_id or job.kind != KIND:
        raise NotFoundError("classification dataset", public_id("classification dataset", job_id))
    return job


def finish(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    """Register the file, and what its labels mean, in the transaction that ends its job."""
    report = ClassificationReport.model_validate(result)
    row = session.get_one(Job, job.id)
    spec = ClassificationSpec.model_validate(row.spec)
    file = files.add_made(
        session, job, filename=f"{spec.name}.jsonl", size_bytes=report.size_bytes, sha256=report.sha256
    )
    files.write_validation(session, file.id, report.validation)
    for position, label in enumerate(spec.labels):
        known = {"position": position, "label": label.label, "version_id": label.version_id}
        session.add(
            ClassifiedExpert(org_id=job.org_id, dataset_version_id=file.id, rows=report.rows[label.label], **known)
        )
    session.execute(update(Job).where(Job.id == job.id).values(dataset_version_id=file.id))


def labels_of(session: Session, version: ExpertVersion) -> list[KnownExpert]:
    """The experts that a version was trained to tell apart, in the order of its answers; none of no classifier."""
    statement = (
        select(ClassifiedExpert.label, ExpertVersion.expert_id)
        .join(Job, Job.dataset_version_id == ClassifiedExpert.dataset_version_id)
        .join(ExpertVersion, ExpertVersion.id == ClassifiedExpert.version_id)
        .where(Job.id == version.job_id)
        .order_by(ClassifiedExpert.position)
    )
    return [KnownExpert(*row) for row in session.execute(statement)]


def classified(session: Session, file_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Classified]]:
    """What the labels of these files mean, of those that are for a classifier, in the order of their answers."""
    of_files = select(ClassifiedExpert).where(ClassifiedExpert.dataset_version_id.in_(file_ids))
    rows = session.scalars(of_files.order_by(ClassifiedExpert.position)).all()
    names = {version_id: record.name for version_id, record in _records(session, rows).items()}
    by_file: dict[uuid.UUID, list[Classified]] = {}
    for row in rows:
        by_file.setdefault(row.dataset_version_id, []).append(Classified(row.label, names[row.version_id], row.rows))
    return by_file


def classified_by(session: Session, records: Sequence[VersionRecord]) -> dict[uuid.UUID, list[Classified]]:
    """The same by the versions that were trained on such files: of those that are classifiers."""
    of_jobs = select(Job.id, Job.dataset_version_id).where(Job.id.in_([record.version.job_id for record in records]))
    files_of = {job_id: file_id for job_id, file_id in session.execute(of_jobs) if file_id is not None}
    by_file = classified(session, list(files_of.values()))
    by_job = {job_id: by_file[file_id] for job_id, file_id in files_of.items() if file_id in by_file}
    return {record.version.id: by_job[record.version.job_id] for record in records if record.version.job_id in by_job}


def _records(session: Session, rows: Sequence[ClassifiedExpert]) -> Mapping[uuid.UUID, VersionRecord]:
    return versions.by_id(session, [row.version_id for row in rows]) if rows else {}


def _labelled(session: Session, caller: Caller, record: VersionRecord) -> LabelledPrompts:
    job = session.get_one(Job, record.version.job_id)
    training = _readable(session, caller, job.dataset_version_id)
    validation = _readable(session, caller, job.validation_version_id)
    # Without the validation file nobody knows which rows it kept from being trained on.
    if training is None or (validation is None and job.validation_version_id is not None):
        raise InvalidRequestError(
            f"experts: the rows that {record.name} was trained on are not in this project any more, so a classifier "
            "cannot learn which prompts are its own. Leave it out, or train it again.",
            param="experts",
        )
    return LabelledPrompts(
        label=record.expert.name,
        model=record.name,
        version_id=record.version.id,
        training=files.stored_file(training),
        validation=files.stored_file(validation) if validation else None,
    )


def _readable(session: Session, caller: Caller, version_id: uuid.UUID | None) -> DatasetVersion | None:
    version = session.get(DatasetVersion, version_id) if version_id is not None else None
    is_there = version is not None and version.project_id == caller.project_id and version.deleted_at is None
    return version if is_there else None


def _check_apart(records: Sequence[VersionRecord], labels: Sequence[LabelledPrompts]) -> None:
    """Refuse experts that no prompt tells apart."""
    by_expert: dict[uuid.UUID, str] = {}
    by_file: dict[str, str] = {}
    for record, label in zip(records, labels, strict=True):
        if record.expert.id in by_expert:
            reason = f"{record.name} and {by_expert[record.expert.id]} are of one expert. Name each expert once."
        elif label.training.sha256 in by_file:
            reason = (
                f"{record.name} and {by_file[label.training.sha256]} were trained on the same rows, so no prompt tells "
                "them apart. Name one of them."
            )
        elif label.label == OTHER:
            reason = f"'{OTHER}' is what prompts are called that are for no expert. Rename {record.expert.name}."
        else:
            by_expert[record.expert.id] = by_file[label.training.sha256] = record.name
            continue
        raise InvalidRequestError(f"experts: {reason}", param="experts")


def _other(session: Session, caller: Caller, file_id: str, labels: Sequence[LabelledPrompts]) -> PromptFiles:
    file = require_validated(session, caller.project_id, file_id, param="others")
    if file.purpose == files.EVALS:
        raise InvalidRequestError(
            f"others: '{file.filename}' is there to evaluate with, and nothing learns from that. Push another file.",
            param="others",
        )
    trained = next((label.model for label in labels if label.training.sha256 == file.sha256), None)
    if trained is not None:
        raise InvalidRequestError(
            f"others: {trained} was trained on '{file.filename}', so its prompts are not for none of the experts.",
            param="others",
        )
    return PromptFiles(training=files.stored_file(file))


def _excluded(session: Session, caller: Caller) -> list[StoredFile]:
    """The project's files to evaluate with."""
    statement = (
        select(DatasetVersion)
        .where(DatasetVersion.project_id == caller.project_id, DatasetVersion.purpose == files.EVALS)
        .where(DatasetVersion.status == "processed", DatasetVersion.deleted_at.is_(None))
        .order_by(DatasetVersion.id.desc())
        .limit(MAX_EXCLUDED)
    )
    return [files.stored_file(version) for version in session.scalars(statement)]
