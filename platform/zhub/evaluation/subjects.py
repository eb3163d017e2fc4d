"""What evaluations measure: a base, an expert version, or a release version."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from zhub.answering import Answering
from zhub.errors import InvalidRequestError
from zhub.models import BaseModel, Evaluation
from zhub.registry import base_models, releases, versions
from zhub.registry.references import answering
from zhub.registry.releases import ReleaseRecord
from zhub.registry.resolve import resolve
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

Record = VersionRecord | ReleaseRecord


@dataclass(frozen=True)
class Subject:
    """What is measured: the version ``record``, or where it is None the base.

    ``release``: who answers, where it is a release.
    """

    base: BaseModel
    record: Record | None = None
    release: Answering | None = None

    @property
    def name(self) -> str:
        return self.record.name if self.record else self.base.name

    @property
    def version_id(self) -> uuid.UUID | None:
        return self.record.version.id if isinstance(self.record, VersionRecord) else None

    @property
    def release_version_id(self) -> uuid.UUID | None:
        return self.record.version.id if isinstance(self.record, ReleaseRecord) else None


def find(session: Session, caller: Caller, name: str, param: str) -> Subject:
    """What a request for an evaluation names.

    Raises:
        InvalidRequestError: it is none of the three.
        NotFoundError, NotReadyError, ConflictError: it is missing or not usable yet.
    """
    resolved = resolve(session, caller, name, [])
    base_models.require_ready(resolved.base)
    if resolved.release is not None:
        return Subject(resolved.base, resolved.release, answering(resolved))
    record = resolved.experts[0].record if resolved.experts else None
    if resolved.candidates is not None or isinstance(record, versions.CheckpointRecord):
        raise InvalidRequestError(
            f"{param}: '{name}' is no expert version, no release version and no base model; only these are evaluated.",
            param=param,
        )
    if record is not None and record.organization is not None:
        raise InvalidRequestError(
            f"{param}: '{name}' is another organisation's, which evaluates it itself. Its card has its figures.",
            param=param,
        )
    return Subject(resolved.base, record)


def find_version(session: Session, project_id: uuid.UUID, name: str) -> Record:
    """The version of a release or of an expert that has this name. Raises NotFoundError."""
    return releases.find_kept(session, project_id, name) or versions.get_version(session, project_id, name)


def keep(session: Session, measured: Iterable[Subject]) -> None:
    """Let nobody delete these before the transaction ends. Raises NotFoundError: one was deleted since."""
    for subject in measured:
        if subject.record is not None:
            keep_record(session, subject.record)


def keep_record(session: Session, record: Record) -> None:
    if isinstance(record, VersionRecord):
        versions.keep(session, [record])
    else:
        releases.keep(session, record)


def measures_base() -> ColumnElement[bool]:
    """That an evaluation measures a base alone."""
    return Evaluation.version_id.is_(None) & Evaluation.release_version_id.is_(None)


def records(session: Session, listed: Sequence[Evaluation]) -> dict[uuid.UUID, Record]:
    """The version behind each of these evaluations, for those that have one."""
    experts = versions.by_id(session, [row.version_id for row in listed if row.version_id is not None])
    of_releases = releases.by_id(
        session, [row.release_version_id for row in listed if row.release_version_id is not None]
    )
    behind: dict[uuid.UUID, Record] = {}
    for evaluation in listed:
        if evaluation.version_id is not None:
            behind[evaluation.id] = experts[evaluation.version_id]
        elif evaluation.release_version_id is not None:
            behind[evaluation.id] = of_releases[evaluation.release_version_id]
    return behind


def names(session: Session, listed: Sequence[Evaluation], behind: Mapping[uuid.UUID, Record]) -> dict[uuid.UUID, str]:
    """The model that each of these evaluations measured; ``behind``: their ``records``."""
    ids = {evaluation.base_model_id for evaluation in listed}
    bases = dict(session.execute(select(BaseModel.id, BaseModel.name).where(BaseModel.id.in_(ids))).all())
    return {
        evaluation.id: behind[evaluation.id].name if evaluation.id in behind else bases[evaluation.base_model_id]
        for evaluation in listed
    }


def warnings(
    session: Session, listed: Sequence[Evaluation], behind: Mapping[uuid.UUID, Record]
) -> dict[uuid.UUID, list[str]]:
    """Reasons why the figures of each of these evaluations may mislead; ``behind``: their ``records``."""
    pins = releases.pinned(session, [record for record in behind.values() if isinstance(record, ReleaseRecord)])
    told: dict[uuid.UUID, list[str]] = {}
    for evaluation in listed:
        record = behind.get(evaluation.id)
        if record is None:
            trained = []
        elif isinstance(record, VersionRecord):
            trained = [record]
        else:
            trained = [pin.record for pin in pins[record.version.id]]
        told[evaluation.id] = [
            f"{expert.name} was trained on this file: its figures flatter it. Measure it on rows that it never saw."
            for expert in trained
            if evaluation.suite["file"]["sha256"]
            in (expert.version.manifest["dataset_digest"], expert.version.manifest["validation_digest"])
        ]
    return told
