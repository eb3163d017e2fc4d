"""Expert versions and checkpoints with what they belong to, by id or by the name that a user gives."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, or_, select, tuple_
from sqlalchemy.orm import Session, aliased, defer

from zhub.errors import NotFoundError
from zhub.ids import parse_id, public_id
from zhub.models import Alias, BaseModel, Checkpoint, Expert, ExpertVersion, Job, Project
from zhub.registry.names import ALIAS_NAME, CHECKPOINT_NAME, EXPERT_NAME, PROD, VERSION_NAME
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
        return _name(self.project.name, self.expert.name, self.version.version)

    @property
    def is_base(self) -> bool:
        """It answers as the base does: no step of its training was better, and it began from no other version."""
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


def list_versions(
    session: Session, project_id: uuid.UUID, *, after: str | None = None, limit: int, with_manifests: bool = True
) -> tuple[list[VersionRecord], bool]:
    """The project's versions, newest first, from the one that follows the name ``after``, and whether more follow.

    Raises:
        NotFoundError: there is no version ``after``.
    """
    statement = _records().where(Expert.project_id == project_id)
    if after is not None:
        last = get_version(session, project_id, after).version
        statement = statement.where(tuple_(*_AGE) < (last.created_at, last.version, last.id))
    if not with_manifests:
        statement = statement.options(defer(ExpertVersion.manifest, raiseload=True))
    newest_first = [VersionRecord(*row) for row in session.execute(statement.limit(limit + 1))]
    return newest_first[:limit], len(newest_first) > limit


def promoted(session: Session, project_id: uuid.UUID, base: BaseModel) -> list[VersionRecord]:
    """What ``@prod`` of each of the project's experts points to, on this base and its basis, newest first.

    Without LoRAs, and without those that are the base: choosing one would only pretend.
    """
    statement = (
        select(ExpertVersion, Expert, Project)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .join(Alias, and_(Alias.version_id == ExpertVersion.id, Alias.expert_id == Expert.id))
        .where(Alias.name == PROD, Expert.project_id == project_id, *_served(base))
        .where(_is_not_base(ExpertVersion))
        .order_by(*(column.desc() for column in _AGE))
    )
    return [VersionRecord(*row, base) for row in session.execute(statement)]


def newest(
    session: Session, project_id: uuid.UUID, base: BaseModel, *, limit: int | None = None
) -> list[VersionRecord]:
    """The newest version of each of the project's experts on this base and its basis, newest first, promoted or not.

    Without LoRAs, and without those that are the base: no training has a reason to begin from one.
    """
    of_expert = (
        select(ExpertVersion)
        .where(ExpertVersion.expert_id == Expert.id, *_served(base))
        .order_by(ExpertVersion.version.desc())
        .limit(1)
    )
    # Plan at 10^6 versions of 100 experts: of each expert the last entries of the unique index on (expert_id, version),
    # back to one that fits; 200 rows, 1 ms. A DISTINCT ON over a join would read every version.
    version = aliased(ExpertVersion, of_expert.lateral(), name="version")
    statement = (
        select(version, Expert, Project)
        .select_from(Project)
        .join(Expert, and_(Expert.org_id == Project.org_id, Expert.project_id == Project.id))
        .join(version, version.expert_id == Expert.id)
        .where(Project.id == project_id, _is_not_base(version))
        .order_by(version.created_at.desc(), version.version.desc(), version.id.desc())
        .limit(limit)
    )
    return [VersionRecord(*row, base) for row in session.execute(statement)]


def _served(base: BaseModel) -> tuple[ColumnElement[bool], ...]:
    """Serving can answer with the version on this base."""
    return (
        ExpertVersion.base_model_id == base.id,
        ExpertVersion.manifest["basis_fingerprint"].astext == base.basis_fingerprint,
        ExpertVersion.manifest["hyperparameters"]["adapter"].astext.is_distinct_from("lora"),
    )


def _is_not_base(version: type[ExpertVersion]) -> ColumnElement[bool]:
    """``VersionRecord.is_base`` is false."""
    return or_(version.manifest["best_step"].as_integer() != 0, version.manifest["parent_digest"].astext.is_not(None))


def by_id(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, VersionRecord]:
    """These versions by their ids."""
    return {record.version.id: record for record in records(session, ExpertVersion.id.in_(ids))}


def get_version(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord:
    """The version that ``<project>.<expert>@v<number>`` or ``<project>.<expert>@<alias>`` names.

    Raises:
        NotFoundError: with where to look.
    """
    if match := VERSION_NAME.fullmatch(name):
        is_named = ExpertVersion.version == int(match["number"])
    elif match := ALIAS_NAME.fullmatch(name):
        target = select(Alias.version_id).where(Alias.expert_id == Expert.id, Alias.name == match["alias"])
        is_named = ExpertVersion.id == target.scalar_subquery()
    else:
        raise no_such_model(name)
    versions = records(
        session,
        Expert.project_id == project_id,
        Project.name == match["project"],
        Expert.name == match["expert"],
        is_named,
    )
    if not versions:
        raise no_such_model(name)
    return versions[0]


def get_expert(session: Session, caller: Caller, name: str) -> Expert:
    """The expert that ``<project>.<expert>`` names. Raises NotFoundError."""
    match = EXPERT_NAME.fullmatch(name)
    expert = (
        session.scalar(select(Expert).where(Expert.project_id == caller.project_id, Expert.name == match["expert"]))
        if match and match["project"] == caller.project
        else None
    )
    if expert is None:
        raise NotFoundError("expert", name, "GET /v1/experts lists the versions of all experts.")
    return expert


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


def checkpoint_names(session: Session, job: Job, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """The model id of each of these checkpoints of a job."""
    expert, project, base = session.execute(
        select(Expert, Project, BaseModel)
        .join(Project, Project.id == Expert.project_id)
        .join(BaseModel, BaseModel.id == job.base_model_id)
        .where(Expert.id == job.expert_id)
    ).one()
    return [CheckpointRecord(checkpoint, expert, project, base).name for checkpoint in checkpoints]


def job_model_names(session: Session, jobs: Sequence[Job]) -> dict[uuid.UUID, str]:
    """The model that each of these jobs published, for those that did."""
    published = (
        select(ExpertVersion.job_id, Project.name, Expert.name, ExpertVersion.version)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .where(ExpertVersion.job_id.in_([job.id for job in jobs]))
    )
    return {job_id: _name(project, expert, number) for job_id, project, expert, number in session.execute(published)}


def no_such_model(name: str) -> NotFoundError:
    return NotFoundError("model", name, "GET /v1/models lists the experts and base models that this key may use.")


def records(session: Session, *conditions: ColumnElement[bool]) -> list[VersionRecord]:
    """Versions with what they belong to, newest first."""
    return [VersionRecord(*row) for row in session.execute(_records().where(*conditions))]


# Not by the id alone, which begins with the time of the process that published.
_AGE = (ExpertVersion.created_at, ExpertVersion.version, ExpertVersion.id)


def _records() -> Select[ExpertVersion, Expert, Project, BaseModel]:
    return (
        select(ExpertVersion, Expert, Project, BaseModel)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .join(BaseModel, BaseModel.id == ExpertVersion.base_model_id)
        .order_by(*(column.desc() for column in _AGE))
    )


def _name(project: str, expert: str, number: int) -> str:
    return f"{project}.{expert}@v{number}"
