"""Expert versions and checkpoints with what they belong to, by id or by the name that a user gives."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from zhub.errors import NotFoundError
from zhub.ids import parse_id, public_id
from zhub.models import Alias, BaseModel, Checkpoint, Expert, ExpertVersion, Job, Project
from zhub.registry.names import ALIAS_NAME, CHECKPOINT_NAME, EXPERT_NAME, VERSION_NAME
from zhub.tenancy.keys import Caller


@dataclass(frozen=True)
class VersionRecord:
    """A version with what it belongs to."""

    version: ExpertVersion
    expert: Expert
    project: Project
    base: BaseModel

    @property
    def name(self) -> str:
        """``<project>.<expert>@v<number>``, the model id of this version."""
        return f"{self.project.name}.{self.expert.name}@v{self.version.version}"

    @property
    def is_base(self) -> bool:
        """It answers as the base does: no step of its training was better, nor what that began from."""
        manifest = self.version.manifest
        return manifest["best_step"] == 0 and manifest["parent_digest"] is None

    @property
    def is_lora(self) -> bool:
        """Kept to compare experts with; serving does not answer with it."""
        return self.version.manifest["hyperparameters"].get("adapter") == "lora"  # type: ignore[no-any-return]


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint with what it belongs to."""

    checkpoint: Checkpoint
    expert: Expert
    project: Project
    base: BaseModel

    @property
    def name(self) -> str:
        """``<project>.<expert>@<job>:step-<n>``, the model id of this checkpoint."""
        job = public_id("fine-tuning job", self.checkpoint.job_id)
        return f"{self.project.name}.{self.expert.name}@{job}:step-{self.checkpoint.step}"


def list_versions(session: Session, project_id: uuid.UUID) -> list[VersionRecord]:
    """The project's versions, newest first."""
    return records(session, Expert.project_id == project_id)


def newest(session: Session, project_id: uuid.UUID, base: BaseModel) -> list[VersionRecord]:
    """The newest version of each of the project's experts on this base and its basis, newest first.

    Without LoRAs, and without those that are the base: choosing one would only pretend.
    """
    by_expert: dict[uuid.UUID, VersionRecord] = {}
    for record in list_versions(session, project_id):
        fits = record.base.id == base.id and record.version.manifest["basis_fingerprint"] == base.basis_fingerprint
        if fits and not record.is_lora:
            best = by_expert.get(record.expert.id)
            if best is None or record.version.version > best.version.version:
                by_expert[record.expert.id] = record
    return [record for record in by_expert.values() if not record.is_base]


def by_id(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, VersionRecord]:
    """These versions by their ids."""
    return {record.version.id: record for record in records(session, ExpertVersion.id.in_(ids))}


def get_version(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord:
    """The version that ``<project>.<expert>@v<number>`` or ``<project>.<expert>@<alias>`` names.

    Raises:
        NotFoundError: with where to look.
    """
    if match := VERSION_NAME.fullmatch(name):
        which = ExpertVersion.version == int(match["number"])
    elif match := ALIAS_NAME.fullmatch(name):
        stands_on = select(Alias.version_id).where(Alias.expert_id == Expert.id, Alias.name == match["alias"])
        which = ExpertVersion.id == stands_on.scalar_subquery()
    else:
        raise no_such_model(name)
    found = records(
        session,
        Expert.project_id == project_id,
        Project.name == match["project"],
        Expert.name == match["expert"],
        which,
    )
    if not found:
        raise no_such_model(name)
    return found[0]


def get_expert(session: Session, caller: Caller, name: str) -> Expert:
    """The expert that ``<project>.<expert>`` names. Raises NotFoundError."""
    match = EXPERT_NAME.fullmatch(name)
    found = (
        session.scalar(select(Expert).where(Expert.project_id == caller.project_id, Expert.name == match["expert"]))
        if match and match["project"] == caller.project
        else None
    )
    if found is None:
        raise NotFoundError("expert", name, "GET /v1/experts lists the versions of those that there are.")
    return found


def get_checkpoint(session: Session, project_id: uuid.UUID, name: str) -> CheckpointRecord:
    """The checkpoint that ``<project>.<expert>@<job>:step-<n>`` names. Raises NotFoundError."""
    match = CHECKPOINT_NAME.fullmatch(name)
    row = (
        match
        and session.execute(
            select(Checkpoint, Expert, Project, BaseModel)
            .join(Job, Job.id == Checkpoint.job_id)
            .join(Expert, Expert.id == Job.expert_id)
            .join(Project, Project.id == Expert.project_id)
            .join(BaseModel, BaseModel.id == Job.base_model_id)
            .where(
                Checkpoint.job_id == parse_id("fine-tuning job", match["job"]),
                Checkpoint.step == int(match["step"]),
                Checkpoint.deleted_at.is_(None),
                Expert.project_id == project_id,
                Project.name == match["project"],
                Expert.name == match["expert"],
            )
        ).one_or_none()
    )
    if not row:
        raise no_such_model(name)
    return CheckpointRecord(*row)


def checkpoint_names(session: Session, job: Job, found: Sequence[Checkpoint]) -> list[str]:
    """The model id of each of these checkpoints of a job."""
    expert, project, base = session.execute(
        select(Expert, Project, BaseModel)
        .join(Project, Project.id == Expert.project_id)
        .join(BaseModel, BaseModel.id == job.base_model_id)
        .where(Expert.id == job.expert_id)
    ).one()
    return [CheckpointRecord(one, expert, project, base).name for one in found]


def job_model_names(session: Session, jobs: Sequence[Job]) -> dict[uuid.UUID, str]:
    """The model that each of these jobs published, for those that did."""
    published = records(session, ExpertVersion.job_id.in_([job.id for job in jobs]))
    return {record.version.job_id: record.name for record in published}


def no_such_model(name: str) -> NotFoundError:
    return NotFoundError("model", name, "GET /v1/models lists the experts and base models that this key may use.")


def records(session: Session, *conditions: ColumnElement[bool]) -> list[VersionRecord]:
    """Versions with what they belong to, newest first."""
    rows = session.execute(
        select(ExpertVersion, Expert, Project, BaseModel)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .join(BaseModel, BaseModel.id == ExpertVersion.base_model_id)
        .where(*conditions)
        # Not by id, which begins with the time of whoever published.
        .order_by(ExpertVersion.created_at.desc(), ExpertVersion.version.desc())
    )
    return [VersionRecord(*row) for row in rows]
