"""Expert versions and checkpoints with what they belong to, by id or by the name that a user gives."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select
from sqlalchemy.orm import Session, aliased

from zhub.errors import ConflictError, NotFoundError
from zhub.ids import parse_id, public_id
from zhub.manifest import ROUTING_FILE
from zhub.models import Alias, BaseModel, Checkpoint, Expert, ExpertVersion, Job, Project
from zhub.recipes import AdapterKind
from zhub.registry import missing
from zhub.registry.names import ALIAS_NAME, CHECKPOINT_NAME, EXPERT_NAME, PROD, VERSION_NAME
from zhub.tenancy.keys import Caller

SVF: AdapterKind = "svf"
ALL_KINDS: tuple[AdapterKind, ...] = get_args(AdapterKind)


@dataclass(frozen=True)
class VersionRecord:
    """A version with what it belongs to."""

    version: ExpertVersion
    expert: Expert
    project: Project
    base: BaseModel
    organization: str | None = None
    """The name of its owner, for who is of another organisation."""

    @property
    def name(self) -> str:
        """``<project>.<expert>@v<number>``, the model id of this version; with its owner before it for others."""
        local = _name(self.project.name, self.expert.name, self.version.version)
        return local if self.organization is None else f"{self.organization}.{local}"

    @property
    def is_base(self) -> bool:
        """It answers as the base does: no step of its training was better, and it began from no other version."""
        manifest = self.version.manifest
        return manifest["best_step"] == 0 and manifest["parent_digest"] is None

    @property
    def adapter(self) -> AdapterKind:
        """What was trained. Only from an ``svf`` can another training begin; serving answers with all kinds."""
        return self.version.manifest["hyperparameters"].get("adapter", SVF)  # type: ignore[no-any-return]


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


def promoted(
    session: Session, project_id: uuid.UUID, base: BaseModel, *, kinds: Collection[AdapterKind] = ALL_KINDS
) -> list[VersionRecord]:
    """What ``@prod`` of each of the project's experts points to, on this base and its basis, newest first.

    Without other kinds and what is archived, and without those that are the base: choosing one would only pretend.
    """
    statement = (
        select(ExpertVersion, Expert, Project)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .join(Alias, and_(Alias.version_id == ExpertVersion.id, Alias.expert_id == Expert.id))
        .where(Alias.name == PROD, Expert.project_id == project_id, *_fits(ExpertVersion, base, kinds))
        .where(_is_not_base(ExpertVersion), _has_prompts(ExpertVersion), *usable(ExpertVersion))
        .order_by(*(column.desc() for column in _AGE))
    )
    return [VersionRecord(*row, base) for row in session.execute(statement)]


def newest(session: Session, project_id: uuid.UUID, base: BaseModel, *, limit: int) -> list[VersionRecord]:
    """What a training may begin from: ``@prod`` of each of the project's experts, or else its newest version.

    Of the kind ``svf`` only, newest first.
    """
    records = promoted(session, project_id, base, kinds=[SVF])
    records += never_promoted(session, project_id, base, limit=limit, kinds=[SVF])
    records.sort(
        key=lambda record: (record.version.created_at, record.version.version, record.version.id), reverse=True
    )
    return records[:limit]


def never_promoted(
    session: Session,
    project_id: uuid.UUID,
    base: BaseModel,
    *,
    limit: int,
    kinds: Collection[AdapterKind] = ALL_KINDS,
) -> list[VersionRecord]:
    """The newest version of each of the project's experts without ``@prod``, on this base and its basis, newest first.

    Without other kinds and what is archived, and without those that are the base: nobody has a reason to choose one.
    """
    has_prod = exists().where(Alias.expert_id == Expert.id, Alias.name == PROD, Alias.version_id.is_not(None))
    of_expert = (
        select(ExpertVersion)
        .where(ExpertVersion.expert_id == Expert.id, *_fits(ExpertVersion, base, kinds), *usable(ExpertVersion))
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
        .where(Project.id == project_id, ~has_prod, _is_not_base(version), _has_prompts(version))
        .order_by(version.created_at.desc(), version.version.desc(), version.id.desc())
        .limit(limit)
    )
    return [VersionRecord(*row, base) for row in session.execute(statement)]


def representative(session: Session, expert: Expert) -> VersionRecord | None:
    """What stands for an expert: what ``@prod`` points to, or else its newest version that is left."""
    version_id = session.scalar(select(Alias.version_id).where(Alias.expert_id == expert.id, Alias.name == PROD))
    if version_id is None:
        of_expert = (ExpertVersion.expert_id == expert.id, ExpertVersion.deleted_at.is_(None))
        newest = select(ExpertVersion.id).where(*of_expert).order_by(ExpertVersion.version.desc()).limit(1)
        version_id = session.scalar(newest)
    return None if version_id is None else by_id(session, [version_id])[version_id]


def in_use(version: type[ExpertVersion]) -> tuple[ColumnElement[bool], ...]:
    """Neither the version nor its expert is archived or deleted, and no file of it is lost."""
    return (
        version.lost_files.is_(None),
        version.archived_at.is_(None),
        version.deleted_at.is_(None),
        Expert.archived_at.is_(None),
        Expert.deleted_at.is_(None),
    )


def usable(version: type[ExpertVersion]) -> tuple[ColumnElement[bool], ...]:
    """The version is in use, and was not yanked."""
    return (*in_use(version), version.yanked_at.is_(None))


def _fits(
    version: type[ExpertVersion], base: BaseModel, kinds: Collection[AdapterKind]
) -> tuple[ColumnElement[bool], ...]:
    """The version is of one of these kinds, and on this base as it is decomposed now."""
    kind = version.manifest["hyperparameters"]["adapter"].astext
    return (
        version.base_model_id == base.id,
        version.manifest["basis_fingerprint"].astext == base.basis_fingerprint,
        # Not ``in``, which the planner takes to be rare: it would read every version.
        *(kind.is_distinct_from(other) for other in ALL_KINDS if other not in kinds),
    )


def _is_not_base(version: type[ExpertVersion]) -> ColumnElement[bool]:
    """``VersionRecord.is_base`` is false."""
    return or_(version.manifest["best_step"].as_integer() != 0, version.manifest["parent_digest"].astext.is_not(None))


def _has_prompts(version: type[ExpertVersion]) -> ColumnElement[bool]:
    """It is known which prompts are its own: not of an imported version that nobody said that of."""
    return version.manifest["files"].contains([{"name": ROUTING_FILE}])


def by_id(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, VersionRecord]:
    """These versions by their ids."""
    return {record.version.id: record for record in records(session, ExpertVersion.id.in_(ids))}


def parents(session: Session, records: Sequence[VersionRecord]) -> dict[str, str]:
    """By digest, the names of the versions that training of these began from: of the same project as they are now, of
    others as they were then."""
    digests = {record.version.manifest["parent_digest"] for record in records} - {None}
    if not digests:
        return {}
    statement = _records().where(ExpertVersion.digest.in_(digests), Expert.project_id == records[0].project.id)
    names = {row[0].digest: VersionRecord(*row).name for row in session.execute(statement)}
    if digests <= names.keys():
        return names
    # One of another project, or organisation: the job has what it was called when the training began.
    jobs = select(Job.spec).where(Job.id.in_([record.version.job_id for record in records]))
    starts = [start for spec in session.scalars(jobs) for start in spec.get("starts", [])]
    return {start["digest"]: start["name"] for start in starts if start["digest"] in digests} | names


def get_version(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord:
    """The version that ``<project>.<expert>@v<number>`` or ``<project>.<expert>@<alias>`` names.

    Raises:
        NotFoundError: with the name that may have been meant.
    """
    record = find_version(session, project_id, name)
    if record is None:
        raise missing.model(session, project_id, name)
    if record.version.deleted_at is not None:
        raise NotFoundError("model", name, "It was deleted.")
    return record


def require_whole(record: VersionRecord) -> None:
    """Raise ConflictError where the object store has lost a file of the version, which then cannot answer."""
    if record.version.lost_files:
        raise ConflictError(
            f"{record.name} cannot be used: the object store has lost {', '.join(record.version.lost_files)} of it. "
            "Name another version. Once an operator has restored the files from a backup, it can be used again."
        )


def get_usable(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord:
    """As ``get_version``, for what a version is used for: to answer, or to begin a training from it.

    Raises:
        NotFoundError: also where it was yanked, with why and what to use.
        ConflictError: a file of it is lost.
    """
    record = get_version(session, project_id, name)
    require_usable(session, record, name)
    return record


def require_usable(session: Session, record: VersionRecord, name: str) -> None:
    """Raise as ``get_usable`` where the version of this name answers nothing."""
    require_whole(record)
    if record.version.yanked_at is not None:
        raise NotFoundError("model", name, yanked(session, record))


def yanked(session: Session, record: VersionRecord) -> str:
    """Why a version was yanked, and what to use in its place, in sentences."""
    version = record.version
    # Of another organisation's version the successor may not be shared.
    successor = by_id(session, [version.successor_id]).get(version.successor_id) if version.successor_id else None
    use = (
        f"Use {successor.name}."
        if successor is not None
        else f"GET /v1/experts?search={record.expert.name} lists the other versions of the expert."
    )
    return f"{record.name} was yanked: {version.state_reason} {use}"


def find_version(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord | None:
    """The version of this name, also a deleted one; by the name of its expert, or by one that it had before."""
    if match := VERSION_NAME.fullmatch(name):
        is_named = ExpertVersion.version == int(match["number"])
    elif match := ALIAS_NAME.fullmatch(name):
        target = select(Alias.version_id).where(Alias.expert_id == Expert.id, Alias.name == match["alias"])
        is_named = ExpertVersion.id == target.scalar_subquery()
    else:
        return None
    # One after the other: the first is by the unique index, and the second reads the project's experts.
    for is_called in (Expert.name == match["expert"], Expert.former_names.contains([match["expert"]])):
        named = (Expert.project_id == project_id, Project.name == match["project"], is_called, is_named)
        if versions := records(session, *named):
            return versions[0]
    return None


def keep(session: Session, versions: Sequence[VersionRecord]) -> None:
    """Let nobody delete or yank these versions before the transaction ends. Those of other organisations are theirs.

    Raises:
        NotFoundError: one was deleted since it was looked up.
        ConflictError: one was yanked.
    """
    own = [record for record in versions if record.organization is None]
    kept = dict(
        session.execute(
            select(ExpertVersion.id, ExpertVersion.yanked_at)
            .where(ExpertVersion.id.in_([record.version.id for record in own]))
            .where(ExpertVersion.deleted_at.is_(None))
            .with_for_update(read=True, key_share=True)
        ).all()
    )
    for record in own:
        if record.version.id not in kept:
            raise NotFoundError("model", record.name, "It was deleted.")
        if kept[record.version.id] is not None:
            session.refresh(record.version)
            raise ConflictError(yanked(session, record))


def get_expert(session: Session, caller: Caller, name: str) -> Expert:
    """The expert that ``<project>.<expert>`` names, also by a name that it had before. Raises NotFoundError."""
    match = EXPERT_NAME.fullmatch(name)
    expert = None
    if match and match["project"] == caller.project:
        expert = named_expert(session, caller.project_id, match["expert"])
    if expert is None:
        raise missing.expert(session, caller, name)
    if expert.deleted_at is not None:
        raise NotFoundError("expert", name, "It was deleted.")
    return expert


def named_expert(session: Session, project_id: uuid.UUID, name: str) -> Expert | None:
    """The project's expert of this name, which it may have had before; also a deleted one."""
    of_project = select(Expert).where(Expert.project_id == project_id)
    expert = session.scalar(of_project.where(Expert.name == name))
    return expert or session.scalar(of_project.where(Expert.former_names.contains([name])))


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
                or_(Expert.name == match["expert"], Expert.former_names.contains([match["expert"]])),
            )
        ).one_or_none()
    )
    if not row:
        raise missing.model(session, project_id, name)
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
