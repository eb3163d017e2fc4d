"""Aliases: names such as ``@prod`` for the version of an expert that they point to, moved by compare-and-swap.

A request for ``<project>.<expert>@prod`` is answered by that version from the next request on. Every move is recorded,
a roll-back too.
"""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.errors import ConflictError, InvalidRequestError, NotFoundError
from zhub.ids import new_id
from zhub.models import Alias, AliasMove, Expert, Schedule
from zhub.registry.versions import VersionRecord, keep
from zhub.suggestions import did_you_mean

# No alias reads like the number of a version.
ALIAS = re.compile(r"(?!v[0-9])[a-z](?:[a-z0-9_-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Expected:
    """What an alias must point to before it is moved: this version, or None: it must not exist yet."""

    version_id: uuid.UUID | None


def check_alias(name: str, *, param: str) -> str:
    """Raise InvalidRequestError unless ``name`` can be an alias."""
    if not ALIAS.fullmatch(name):
        raise InvalidRequestError(
            f"{param}: '{name}' cannot be an alias: use 1 to 32 lower-case letters, digits, '-' or '_', beginning with "
            "a letter and ending with a letter or digit. 'v' and a digit is for the numbers of versions.",
            param=param,
        )
    return name


def check_promotable(record: VersionRecord) -> None:
    """Raise ConflictError where a version or its expert is archived: no alias is moved to it."""
    for what, archived_at in (
        (record.name, record.version.archived_at),
        (record.expert.name, record.expert.archived_at),
    ):
        if archived_at is not None:
            raise ConflictError(f"'{what}' is archived. Unarchive it first.")


def get(session: Session, expert: Expert, name: str, *, also_removed: bool = False) -> Alias:
    """The alias of an expert. Raises NotFoundError, also for one that was removed unless ``also_removed``."""
    of_expert = select(Alias).where(Alias.expert_id == expert.id)
    alias = session.scalar(of_expert.where(Alias.name == name))
    of_expert = of_expert.where(Alias.version_id.is_not(None))
    if alias is None or (alias.version_id is None and not also_removed):
        known = [other.name for other in session.scalars(of_expert.order_by(Alias.name))]
        has = f"It has @{', @'.join(known)}." if known else "It has none."
        near = did_you_mean(name, known)
        raise NotFoundError("alias", name, f"The expert '{expert.name}' has no alias '{name}'.{near} {has}")
    return alias


def current(session: Session, expert_id: uuid.UUID, name: str) -> uuid.UUID | None:
    """The version that an alias points to, if there is one."""
    return session.scalar(select(Alias.version_id).where(Alias.expert_id == expert_id, Alias.name == name))


def move(
    session: Session,
    name: str,
    to: VersionRecord,
    *,
    by: str,
    reason: str | None = None,
    expected: Expected | None = None,
) -> Alias:
    """Point an alias to a version, whatever it points to now, or only if it points to ``expected``.

    If it points to that version already, nothing is recorded.

    Raises:
        ConflictError: it points to another version than expected.
        NotFoundError: the version was deleted meanwhile.
    """
    keep(session, [to])
    made = session.scalar(
        insert(Alias)
        .values(id=new_id(), org_id=to.expert.org_id, expert_id=to.expert.id, name=name, version_id=to.version.id)
        .on_conflict_do_nothing()
        .returning(Alias.id)
    )
    alias = session.scalars(
        select(Alias).where(Alias.expert_id == to.expert.id, Alias.name == name).with_for_update()
    ).one()
    before = None if made is not None else alias.version_id
    if expected is not None and expected.version_id != before:
        raise ConflictError(
            f"'@{name}' of '{to.expert.name}' points to another version than expected: somebody moved it. "
            "Read where it points to now."
        )
    if before == to.version.id:
        return alias
    session.add(
        AliasMove(
            org_id=to.expert.org_id,
            alias_id=alias.id,
            from_version_id=before,
            to_version_id=to.version.id,
            by=by,
            reason=reason,
        )
    )
    session.execute(update(Alias).where(Alias.id == alias.id).values(version_id=to.version.id, moved_at=func.now()))
    session.flush()
    session.refresh(alias)
    return alias


def remove(session: Session, alias: Alias, *, by: str, reason: str | None = None) -> None:
    """Let an alias point to nothing: no request can name it, and ``auto`` leaves the expert out. Its moves stay.

    Raises:
        ConflictError: a schedule watches it.
    """
    session.refresh(alias, with_for_update=True)
    watching = select(Schedule.name).where(Schedule.watched_alias_id == alias.id, Schedule.deleted_at.is_(None))
    if (schedule := session.scalar(watching.limit(1))) is not None:
        raise ConflictError(
            f"The schedule '{schedule}' trains when the version of '@{alias.name}' gets worse. Remove or change the "
            "schedule first."
        )
    if alias.version_id is None:
        return
    session.add(
        AliasMove(
            org_id=alias.org_id,
            alias_id=alias.id,
            from_version_id=alias.version_id,
            to_version_id=None,
            by=by,
            reason=reason,
        )
    )
    session.execute(update(Alias).where(Alias.id == alias.id).values(version_id=None, moved_at=func.now()))
    session.flush()


def of_versions(session: Session, version_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[str]]:
    """The names of the aliases that point to each of these versions, for those that have any."""
    names: dict[uuid.UUID, list[str]] = {}
    pointing = select(Alias.version_id, Alias.name).where(Alias.version_id.in_(version_ids)).order_by(Alias.name)
    for version_id, name in session.execute(pointing):
        if version_id is not None:
            names.setdefault(version_id, []).append(name)
    return names


def list_aliases(session: Session, project_id: uuid.UUID) -> list[Alias]:
    """The aliases of the project's experts, by name."""
    return list(
        session.scalars(
            select(Alias)
            .join(Expert, Expert.id == Alias.expert_id)
            .where(Expert.project_id == project_id, Alias.version_id.is_not(None))
            .order_by(Expert.name, Alias.name)
        )
    )


def moves(session: Session, alias: Alias) -> list[AliasMove]:
    """Every move of an alias, newest first."""
    return list(
        session.scalars(select(AliasMove).where(AliasMove.alias_id == alias.id).order_by(AliasMove.position.desc()))
    )
