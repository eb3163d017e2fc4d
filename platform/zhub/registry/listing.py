"""Lists of expert versions: filtered, sorted, page by page."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import ColumnElement, Select, or_, select, tuple_
from sqlalchemy.orm import Session, aliased, defer

from zhub.models import Alias, BaseModel, Expert, ExpertVersion, Project
from zhub.registry import missing
from zhub.registry.versions import VersionRecord, find_version, in_use

Sort = Literal["newest", "name", "score"]


@dataclass(frozen=True)
class Filter:
    """Which versions a list has. ``tags``: each key with its value, or None for any; of the version or its expert."""

    search: str | None = None
    """A part of the expert's name, or of a description."""
    base: str | None = None
    alias: str | None = None
    tags: Mapping[str, str | None] = field(default_factory=dict)
    archived: bool = False
    """Archived ones as well."""
    answering: bool = False
    """Only those that answer: without what was yanked."""


_Records = Select[ExpertVersion, Expert, Project, BaseModel]
_Listing = tuple[type[ExpertVersion], _Records]


def list_versions(
    session: Session,
    project_id: uuid.UUID,
    *,
    after: str | None = None,
    limit: int,
    only: Filter = Filter(),
    sort: Sort = "newest",
    with_manifests: bool = True,
) -> tuple[list[VersionRecord], bool]:
    """The project's versions from the one that follows the name ``after``, and whether more follow.

    The newest first; or by the name of the expert, of each the newest first; or the best score first.

    Raises:
        NotFoundError: there is no version ``after``, and never was.
    """
    last = None
    if after is not None and (last := find_version(session, project_id, after)) is None:
        raise missing.model(session, project_id, after)
    statements = {"newest": _by_age, "name": _by_name, "score": _by_score}
    version, statement = statements[sort](project_id, only, last, limit + 1)
    if not with_manifests:
        statement = statement.options(defer(version.manifest, raiseload=True))
    listed = [VersionRecord(*row) for row in session.execute(statement)]
    return listed[:limit], len(listed) > limit


# Each of these reads of each expert no more versions than a page has, by an index, whatever number it has.


def _by_age(project_id: uuid.UUID, only: Filter, last: VersionRecord | None, limit: int) -> _Listing:
    # Not by the id alone, which begins with the time of the process that published.
    return _descending(["created_at", "version", "id"], project_id, only, last, limit)


def _by_score(project_id: uuid.UUID, only: Filter, last: VersionRecord | None, limit: int) -> _Listing:
    return _descending(["score", "version", "id"], project_id, only, last, limit)


def _by_name(project_id: uuid.UUID, only: Filter, last: VersionRecord | None, limit: int) -> _Listing:
    of_expert = _of_expert(only, limit).order_by(ExpertVersion.version.desc())
    if last is not None:
        of_expert = of_expert.where(or_(Expert.name > last.expert.name, ExpertVersion.version < last.version.version))
    version = aliased(ExpertVersion, of_expert.lateral(), name="version")
    statement = _listed(version, project_id).order_by(Expert.name, version.version.desc()).limit(limit)
    return version, statement if last is None else statement.where(Expert.name >= last.expert.name)


def _descending(
    columns: Sequence[str], project_id: uuid.UUID, only: Filter, last: VersionRecord | None, limit: int
) -> _Listing:
    """By these columns of the version, of which together no two have the same, the largest first."""
    own = [getattr(ExpertVersion, column) for column in columns]
    of_expert = _of_expert(only, limit).order_by(*(column.desc() for column in own))
    if last is not None:
        of_expert = of_expert.where(tuple_(*own) < tuple(getattr(last.version, column) for column in columns))
    version = aliased(ExpertVersion, of_expert.lateral(), name="version")
    order = (getattr(version, column).desc() for column in columns)
    return version, _listed(version, project_id).order_by(*order).limit(limit)


def _of_expert(only: Filter, limit: int) -> Select[ExpertVersion]:
    return (
        select(ExpertVersion)
        .where(ExpertVersion.expert_id == Expert.id, *_conditions(ExpertVersion, only))
        .limit(limit)
    )


def _listed(version: type[ExpertVersion], project_id: uuid.UUID) -> _Records:
    return (
        select(version, Expert, Project, BaseModel)
        .select_from(Expert)
        .join(Project, Project.id == Expert.project_id)
        .join(version, version.expert_id == Expert.id)
        .join(BaseModel, BaseModel.id == version.base_model_id)
        .where(Project.id == project_id, Expert.org_id == Project.org_id)
    )


def _conditions(version: type[ExpertVersion], only: Filter) -> list[ColumnElement[bool]]:
    """Of a version and its expert, which is named in the statement around it."""
    conditions: list[ColumnElement[bool]] = [version.deleted_at.is_(None)]
    if not only.archived:
        conditions += in_use(version)
    if only.answering:
        conditions.append(version.yanked_at.is_(None))
    if only.search:
        texts = (Expert.name, Expert.description, version.description)
        conditions.append(or_(*(text.icontains(only.search, autoescape=True) for text in texts)))
    if only.base is not None:
        conditions.append(version.base_model_id.in_(select(BaseModel.id).where(BaseModel.name == only.base)))
    if only.alias is not None:
        target = select(Alias.version_id).where(Alias.expert_id == version.expert_id, Alias.name == only.alias)
        conditions.append(version.id == target.scalar_subquery())
    for key, value in only.tags.items():
        holders = (Expert.tags, version.tags)
        has = [tags.has_key(key) if value is None else tags.contains({key: value}) for tags in holders]
        conditions.append(or_(*has))
    return conditions
