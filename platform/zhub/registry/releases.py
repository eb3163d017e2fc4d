"""Release versions with what they belong to and what they pin, by the name that a user gives; their lists and deletion.

``<project>.<release>@v<number>`` is one version, ``<project>.<release>@<alias>`` the one that the alias points to.
Functions take a Session and never commit.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import ConflictError, NotFoundError
from zhub.ids import public_id
from zhub.models import (
    Alias,
    BaseModel,
    Evaluation,
    Job,
    Project,
    Promotion,
    Release,
    ReleaseExpert,
    ReleaseVersion,
    ShadowTrial,
)
from zhub.registry import missing, versions
from zhub.registry.names import ALIAS_NAME, EXPERT_NAME, PROD, VERSION_NAME
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

MAX_ROUTING_CHARACTERS = 300  # of what routing goes by: the base reads all of them before each answer


@dataclass(frozen=True)
class ReleaseRecord:
    """A release version with what it belongs to."""

    version: ReleaseVersion
    release: Release
    project: Project
    base: BaseModel

    @property
    def name(self) -> str:
        """``<project>.<release>@v<number>``, the model id of this version."""
        return f"{self.project.name}.{self.release.name}@v{self.version.version}"


@dataclass(frozen=True)
class PinnedVersion:
    """An expert version of a release, its part in the release, and what routing goes by."""

    record: VersionRecord
    weight: float
    description: str


def description_of(record: VersionRecord) -> str:
    """Which prompts an expert version is for, in one line: as people describe it or its expert, else its name."""
    said = record.version.description or record.expert.description or record.expert.name
    return " ".join(said.split())[:MAX_ROUTING_CHARACTERS]


def get(session: Session, project_id: uuid.UUID, name: str) -> ReleaseRecord:
    """The release version of this name.

    Raises:
        NotFoundError: with the name that may have been meant.
    """
    record = find_kept(session, project_id, name)
    if record is None:
        raise missing.model(session, project_id, name)
    return record


def find_kept(
    session: Session, project_id: uuid.UUID, name: str, *, requester: str | None = None
) -> ReleaseRecord | None:
    """The release version of this name, if it is one; ``requester`` as ``find``. Raises NotFoundError if it was
    deleted."""
    record = find(session, project_id, name, requester=requester)
    if record is not None and record.version.deleted_at is not None:
        raise NotFoundError("model", name, "It was deleted.")
    return record


def find(session: Session, project_id: uuid.UUID, name: str, *, requester: str | None = None) -> ReleaseRecord | None:
    """The release version of this name, also a deleted one.

    ``requester``: who asks. Where the alias has a canary, its share of the requesters get that, each of them always.
    """
    if match := VERSION_NAME.fullmatch(name):
        is_named: ColumnElement[bool] = ReleaseVersion.version == int(match["number"])
    elif match := ALIAS_NAME.fullmatch(name):
        of_release = select(Alias).join(Release, Release.id == Alias.release_id)
        named = (Release.project_id == project_id, Release.name == match["expert"], Alias.name == match["alias"])
        alias = session.scalar(of_release.where(*named))
        if alias is None or alias.release_version_id is None:
            return None
        is_named = ReleaseVersion.id == _pointed_to(alias, requester)
    else:
        return None
    of_name = (Release.project_id == project_id, Project.name == match["project"], Release.name == match["expert"])
    return next(iter(_records(session, *of_name, is_named)), None)


def promoted(session: Session, caller: Caller, name: str, *, requester: str | None = None) -> ReleaseRecord | None:
    """What ``@prod`` of the caller's release of this name points to, if there is one."""
    return find(session, caller.project_id, f"{caller.project}.{name}@{PROD}", requester=requester)


def get_release(session: Session, caller: Caller, name: str) -> Release:
    """The release that ``<project>.<release>`` names. Raises NotFoundError."""
    release = named_release(session, caller, name)
    if release is None:
        raise missing.release(session, caller, name)
    return release


def named_release(session: Session, caller: Caller, name: str) -> Release | None:
    """The release that ``<project>.<release>`` names, if there is one."""
    match = EXPERT_NAME.fullmatch(name)
    if match is None or match["project"] != caller.project:
        return None
    of_project = select(Release).where(Release.project_id == caller.project_id)
    return session.scalar(of_project.where(Release.name == match["expert"]))


def by_id(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, ReleaseRecord]:
    """These release versions by their ids."""
    return {record.version.id: record for record in _records(session, ReleaseVersion.id.in_(ids))}


def pinned(session: Session, records: Sequence[ReleaseRecord]) -> dict[uuid.UUID, list[PinnedVersion]]:
    """What each of these release versions pins, by its id, in the order of its definition."""
    ids = [record.version.id for record in records]
    of_versions = select(ReleaseExpert).where(ReleaseExpert.release_version_id.in_(ids))
    rows = session.scalars(of_versions.order_by(ReleaseExpert.position)).all()
    experts = versions.by_id(session, [row.version_id for row in rows])
    pins: dict[uuid.UUID, list[PinnedVersion]] = {record_id: [] for record_id in ids}
    for row in rows:
        pins[row.release_version_id].append(PinnedVersion(experts[row.version_id], row.weight, row.description))
    return pins


def classifiers(session: Session, records: Sequence[ReleaseRecord]) -> dict[uuid.UUID, VersionRecord]:
    """The classifier of each of these release versions that has one, by the id of the release version."""
    asked = {record.version.id: record.version.classifier_version_id for record in records}
    found = versions.by_id(session, [version_id for version_id in asked.values() if version_id is not None])
    return {release_id: found[version_id] for release_id, version_id in asked.items() if version_id is not None}


def classifier_name(session: Session, record: ReleaseRecord) -> str | None:
    """The model id of a release version's classifier, if it has one."""
    classifier = classifiers(session, [record]).get(record.version.id)
    return classifier.name if classifier else None


def list_versions(
    session: Session, caller: Caller, *, release: str | None, after: str | None, limit: int
) -> tuple[list[ReleaseRecord], bool]:
    """The project's release versions, newest first, from the one that follows the name ``after``; whether more follow.

    Raises:
        NotFoundError: there is no such release, or no version ``after``, and never was.
    """
    only: list[ColumnElement[bool]] = [Release.project_id == caller.project_id, ReleaseVersion.deleted_at.is_(None)]
    if release is not None:
        only.append(Release.id == get_release(session, caller, release).id)
    if after is not None:
        last = find(session, caller.project_id, after)
        if last is None:
            raise missing.model(session, caller.project_id, after)
        only.append(ReleaseVersion.id < last.version.id)
    newest = _records(session, *only, limit=limit + 1)
    return newest[:limit], len(newest) > limit


def keep(session: Session, record: ReleaseRecord) -> None:
    """Let nobody delete this release version before the transaction ends.

    Raises:
        NotFoundError: it was deleted since it was looked up.
    """
    kept = select(ReleaseVersion.id).where(ReleaseVersion.id == record.version.id, ReleaseVersion.deleted_at.is_(None))
    if session.scalar(kept.with_for_update(read=True, key_share=True)) is None:
        raise NotFoundError("model", record.name, "It was deleted.")


def delete(session: Session, record: ReleaseRecord) -> None:
    """Delete a release version, which then pins nothing. Its number is never given again.

    Raises:
        ConflictError: an alias points to it, or sends it a share of its requests, as its canary or its shadow; or it
            is being measured, or its gate decides about it.
    """
    session.refresh(record.version, with_for_update=True)
    for alias in sending(session, record)[:1]:
        raise ConflictError(
            f"'@{alias.name}' sends requests to {record.name}. Move it to another version (PUT "
            "/v1/releases/{release}/aliases/{alias}), or remove it (DELETE /v1/releases/{release}/aliases/{alias}); a "
            "shadow also ends by DELETE /v1/releases/{release}/aliases/{alias}/shadow."
        )
    _refuse_measured(session, record)
    of_version = update(ReleaseVersion).where(ReleaseVersion.id == record.version.id)
    session.execute(of_version.values(deleted_at=func.now()))


def sending(session: Session, record: ReleaseRecord) -> list[Alias]:
    """The aliases that send requests to a release version: that point to it, or have it as their canary or shadow."""
    sends = or_(
        Alias.release_version_id == record.version.id,
        Alias.canary_version_id == record.version.id,
        Alias.id.in_(_shadowed_by(record)),
    )
    return list(session.scalars(select(Alias).where(sends).order_by(Alias.name)))


def _shadowed_by(record: ReleaseRecord) -> Select[uuid.UUID]:
    """The aliases beside whose version this one answers."""
    running = (ShadowTrial.shadow_version_id == record.version.id, ShadowTrial.ended_at.is_(None))
    return select(ShadowTrial.alias_id).where(*running)


def _refuse_measured(session: Session, record: ReleaseRecord) -> None:
    """What is measured needs the files of what the release pins until it has ended."""
    of_gates = select(Promotion.id).join(Job, Job.id == Promotion.job_id).where(Job.state == states.WAITING)
    gate_id = session.scalar(of_gates.where(Promotion.release_version_id == record.version.id).limit(1))
    if gate_id is not None:
        raise ConflictError(
            f"The gate of {public_id('promotion', gate_id)} decides about {record.name}. Wait for it, or cancel it "
            "(POST /v1/promotions/{promotion_id}/cancel)."
        )
    measuring = select(Evaluation.id).join(Job, Job.id == Evaluation.job_id).where(Job.finished_at.is_(None))
    evaluation_id = session.scalar(measuring.where(Evaluation.release_version_id == record.version.id).limit(1))
    if evaluation_id is not None:
        raise ConflictError(
            f"{public_id('evaluation', evaluation_id)} measures {record.name}. Wait until it has ended."
        )


def pinning(session: Session, version_ids: Sequence[uuid.UUID]) -> list[tuple[uuid.UUID, ReleaseRecord]]:
    """The releases that pin one of these expert versions: each with the id of that version."""
    pins = select(ReleaseExpert.version_id, ReleaseExpert.release_version_id)
    pairs = [(row[0], row[1]) for row in session.execute(pins.where(ReleaseExpert.version_id.in_(version_ids)))]
    asked = select(ReleaseVersion.classifier_version_id, ReleaseVersion.id)
    for version_id, release_version_id in session.execute(
        asked.where(ReleaseVersion.classifier_version_id.in_(version_ids))
    ):
        if version_id is not None:
            pairs.append((version_id, release_version_id))
    records = by_id(session, [release_version_id for _, release_version_id in pairs])
    return [(version_id, records[other]) for version_id, other in pairs if records[other].version.deleted_at is None]


def _pointed_to(alias: Alias, requester: str | None) -> uuid.UUID | None:
    if requester is None or alias.canary_share is None or alias.canary_version_id is None:
        return alias.release_version_id
    # By the canary too, so that it is not always the same people who try what is new. A larger share of one canary
    # has everybody that the smaller one had.
    digest = hashlib.sha256(f"{alias.canary_version_id}:{requester}".encode("utf-8", "surrogatepass")).digest()
    is_chosen = int.from_bytes(digest[:8]) / 2**64 < alias.canary_share
    return alias.canary_version_id if is_chosen else alias.release_version_id


def _records(session: Session, *conditions: ColumnElement[bool], limit: int | None = None) -> list[ReleaseRecord]:
    """Release versions with what they belong to, newest first."""
    statement = (
        select(ReleaseVersion, Release, Project, BaseModel)
        .join(Release, Release.id == ReleaseVersion.release_id)
        .join(Project, Project.id == Release.project_id)
        .join(BaseModel, BaseModel.id == ReleaseVersion.base_model_id)
        .where(*conditions)
        .order_by(ReleaseVersion.id.desc())
        .limit(limit)
    )
    return [ReleaseRecord(*row) for row in session.execute(statement)]
