"""The registry: immutable expert versions, and what a model name in a request stands for.

Model names: ``auto`` and ``auto:<base>`` route by prompt, ``<project>.<expert>@v<number>`` is one version,
``<project>.<expert>@<alias>`` the one that the alias stands on, ``<project>.<expert>@ftjob-<32 hex digits>:step-<n>`` a
checkpoint, anything else is a base model. Checkpoints answer who names them; they are in no list of models and never
routed to.
"""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.errors import InvalidRequestError, NotFoundError
from zhub.ids import new_id, parse_id, public_id
from zhub.manifest import Manifest
from zhub.models import Alias, BaseModel, Checkpoint, Expert, ExpertVersion, Job, Project
from zhub.queue import job_events, jobs
from zhub.registry import base_models
from zhub.tenancy.keys import Caller, check_name, slugify
from zhub.webhooks import endpoints

VERSION_NAME = re.compile(r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)@v(?P<number>[1-9][0-9]{0,8})")
CHECKPOINT_NAME = re.compile(
    r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)@(?P<job>ftjob-[0-9a-f]{32}):step-(?P<step>0|[1-9][0-9]{0,8})"
)
ALIAS_NAME = re.compile(r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)@(?P<alias>[a-z][a-z0-9_-]*)")
EXPERT_NAME = re.compile(r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)")
AUTO = "auto"


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


@dataclass(frozen=True)
class WeightedVersion:
    """One part of a mixture: ``z = 1 + Σ weight · (z_k − 1)``."""

    record: VersionRecord | CheckpointRecord
    weight: float


@dataclass(frozen=True)
class ResolvedModel:
    """What answers a request: a base and the experts to put on it, or the candidates to choose from."""

    base: BaseModel
    experts: Sequence[WeightedVersion] = ()
    candidates: Sequence[VersionRecord] | None = None


def expert_for(session: Session, caller: Caller, suffix: str | None, filename: str) -> Expert:
    """The expert that a training's ``suffix`` names, or else its file without the ending; made if it is new."""
    name = slugify(suffix) if suffix is not None else slugify(filename.rpartition(".")[0]) or "expert"
    name = check_name(name, "expert", param="suffix")
    session.execute(
        insert(Expert)
        .values(id=new_id(), org_id=caller.org_id, project_id=caller.project_id, name=name, last_version=0)
        .on_conflict_do_nothing()
    )
    return session.scalars(select(Expert).where(Expert.project_id == caller.project_id, Expert.name == name)).one()


def publish(
    session: Session, job_id: uuid.UUID, fence: int, manifest: Manifest, key_prefix: str, trained_tokens: int
) -> ExpertVersion:
    """Make the version of a finished attempt, in the one transaction that also ends the job.

    Two jobs of one expert serialise on the expert's counter row; numbers have no gaps.

    Raises:
        LeaseLostError: another attempt owns the job, or it was cancelled: nothing is written.
    """
    job = jobs.succeed(session, job_id, fence, trained_tokens=trained_tokens)
    number = session.scalars(
        update(Expert)
        .where(Expert.id == job.expert_id)
        .values(last_version=Expert.last_version + 1)
        .returning(Expert.last_version)
    ).one()
    version = ExpertVersion(
        org_id=job.org_id,
        expert_id=job.expert_id,
        base_model_id=job.base_model_id,
        version=number,
        job_id=job_id,
        fence=fence,
        digest=manifest.digest,
        manifest=manifest.model_dump(mode="json"),
        key_prefix=key_prefix,
        size_bytes=sum(file.size_bytes for file in manifest.files),
    )
    session.add(version)
    session.flush()
    name = _records(session, ExpertVersion.id == version.id)[0].name
    job_events.add(session, job.org_id, job_id, f"Published {name}.", data={"model": name, "digest": version.digest})
    told = {"id": name, "job": public_id("fine-tuning job", job_id), "digest": version.digest}
    endpoints.announce(session, job.org_id, job.project_id, endpoints.PUBLISHED, told)
    return version


def published(session: Session, job_id: uuid.UUID) -> ExpertVersion | None:
    """The version that a job made, if it did: the question after a commit whose answer was lost."""
    return session.scalar(select(ExpertVersion).where(ExpertVersion.job_id == job_id))


def versions(session: Session, project_id: uuid.UUID) -> list[VersionRecord]:
    """The project's versions, newest first."""
    return _records(session, Expert.project_id == project_id)


def newest_versions(session: Session, project_id: uuid.UUID, base: BaseModel) -> list[VersionRecord]:
    """The newest version of each of the project's experts on this base and its basis, newest first.

    Without LoRAs, and without those that are the base: choosing one would only pretend.
    """
    newest: dict[uuid.UUID, VersionRecord] = {}
    for record in versions(session, project_id):
        fits = record.base.id == base.id and record.version.manifest["basis_fingerprint"] == base.basis_fingerprint
        if fits and not record.is_lora:
            best = newest.get(record.expert.id)
            if best is None or record.version.version > best.version.version:
                newest[record.expert.id] = record
    return [record for record in newest.values() if not record.is_base]


def versions_by_id(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, VersionRecord]:
    """These versions by their ids."""
    return {record.version.id: record for record in _records(session, ExpertVersion.id.in_(ids))}


def version(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord:
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
        raise _no_such_model(name)
    found = _records(
        session,
        Expert.project_id == project_id,
        Project.name == match["project"],
        Expert.name == match["expert"],
        which,
    )
    if not found:
        raise _no_such_model(name)
    return found[0]


def expert(session: Session, caller: Caller, name: str) -> Expert:
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


def checkpoint(session: Session, project_id: uuid.UUID, name: str) -> CheckpointRecord:
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
        raise _no_such_model(name)
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


def resolve(session: Session, caller: Caller, model: str, mixture: Sequence[tuple[str, float]]) -> ResolvedModel:
    """Turn the ``model`` of a request, or the ``experts`` of its body, into versions or checkpoints on one base.

    Raises:
        NotFoundError: no such version or base model.
        InvalidRequestError: a mixture over several bases.
        ConflictError: the base model is not decomposed yet.
    """
    if mixture:
        return _resolve_mixture(session, caller, model, mixture)
    if model == AUTO or model.startswith(f"{AUTO}:"):
        base = _default_base(session) if model == AUTO else base_models.get(session, model.removeprefix(f"{AUTO}:"))
        base_models.require_ready(base)
        return ResolvedModel(base, candidates=newest_versions(session, caller.project_id, base))
    if "@" in model:
        named = _version_or_checkpoint(session, caller.project_id, model)
        return ResolvedModel(named.base, [WeightedVersion(named, 1.0)])
    try:
        base = base_models.get(session, model)
    except NotFoundError as exc:
        raise _no_such_model(model) from exc
    base_models.require_ready(base)
    return ResolvedModel(base)


def _resolve_mixture(
    session: Session, caller: Caller, model: str, mixture: Sequence[tuple[str, float]]
) -> ResolvedModel:
    parts = [
        WeightedVersion(_version_or_checkpoint(session, caller.project_id, name), weight) for name, weight in mixture
    ]
    bases = {part.record.base.name: part.record.base for part in parts}
    if len(bases) > 1:
        raise InvalidRequestError(
            f"A mixture needs experts of one base model; these stand on {', '.join(sorted(bases))}.", param="experts"
        )
    (base,) = bases.values()
    if model not in (base.name, AUTO, *(name for name, _weight in mixture)):
        raise InvalidRequestError(
            f"'model' is '{model}', but the experts of this mixture stand on '{base.name}'. Give that as the model.",
            param="model",
        )
    return ResolvedModel(base, parts)


def _version_or_checkpoint(session: Session, project_id: uuid.UUID, name: str) -> VersionRecord | CheckpointRecord:
    return (checkpoint if CHECKPOINT_NAME.fullmatch(name) else version)(session, project_id, name)


def _default_base(session: Session) -> BaseModel:
    base = session.scalar(select(BaseModel).where(BaseModel.is_default))
    if base is None:
        raise NotFoundError("base model", AUTO, "There is no base model yet; add one with `zhub base-models add`.")
    return base


def job_model_names(session: Session, found: Sequence[Job]) -> dict[uuid.UUID, str]:
    """The model that each of these jobs published, for those that did."""
    records = _records(session, ExpertVersion.job_id.in_([job.id for job in found]))
    return {record.version.job_id: record.name for record in records}


def _no_such_model(name: str) -> NotFoundError:
    return NotFoundError("model", name, "GET /v1/models lists the experts and base models that this key may use.")


def _records(session: Session, *conditions: ColumnElement[bool]) -> list[VersionRecord]:
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
