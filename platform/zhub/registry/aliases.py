"""Aliases: names such as ``@prod`` for the version of an expert or release that they point to.

They are moved by compare-and-swap. A request for ``<project>.<expert>@prod`` is answered by that version from the next
request on. Every move is recorded, a roll-back too. An alias of a release may have a canary: another version of the
release, which gets a share of the requests until the alias is moved.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.errors import ConflictError, InvalidRequestError, NotFoundError
from zhub.ids import new_id
from zhub.models import Alias, AliasMove, Expert, Release, Schedule
from zhub.registry import protection, releases, shadows, versions
from zhub.registry.releases import ReleaseRecord
from zhub.registry.versions import VersionRecord
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
    """Raise ConflictError where a version was yanked, or it or its expert is archived: no alias is moved to it."""
    if record.version.yanked_at is not None:
        raise ConflictError(f"'{record.name}' was yanked: {record.version.state_reason} Restore it first.")
    for what, archived_at in (
        (record.name, record.version.archived_at),
        (record.expert.name, record.expert.archived_at),
    ):
        if archived_at is not None:
            raise ConflictError(f"'{what}' is archived. Unarchive it first.")


def get(session: Session, owner: Expert | Release, name: str, *, also_removed: bool = False) -> Alias:
    """The alias of an expert or release. Raises NotFoundError, for a removed one too unless ``also_removed``."""
    of_owner = list(session.scalars(select(Alias).where(_is_of(owner)).order_by(Alias.name)))
    alias = next((alias for alias in of_owner if alias.name == name), None)
    if alias is None or (alias.target_id is None and not also_removed):
        known = [other.name for other in of_owner if other.target_id is not None]
        has = f"It has @{', @'.join(known)}." if known else "It has none."
        near = did_you_mean(name, known)
        kind = "expert" if isinstance(owner, Expert) else "release"
        raise NotFoundError("alias", name, f"The {kind} '{owner.name}' has no alias '{name}'.{near} {has}")
    return alias


def current(session: Session, owner: Expert | Release, name: str) -> uuid.UUID | None:
    """The version that an alias of an expert or release points to, if there is one."""
    alias = session.scalar(select(Alias).where(_is_of(owner), Alias.name == name))
    return None if alias is None else alias.target_id


def check_expected(session: Session, owner: Expert | Release, name: str, expected: Expected) -> None:
    """Raise ConflictError, with who moved it, unless an alias points to what is expected."""
    alias = session.scalar(select(Alias).where(_is_of(owner), Alias.name == name))
    if (None if alias is None else alias.target_id) == expected.version_id:
        return
    if alias is None:
        raise ConflictError(f"'{owner.name}' has no alias '@{name}' yet, and a version was expected. Expect null.")
    raise _moved_meanwhile(session, alias, owner)


def previous(session: Session, alias: Alias) -> uuid.UUID | None:
    """The version that an alias goes back to: the one that it pointed to before the one it points to now.

    Whoever goes back twice goes back two versions: a version that was left by going back is passed over.
    """
    path: list[uuid.UUID] = []
    for move in reversed(moves(session, alias)):
        if move.to_id in path:
            del path[path.index(move.to_id) + 1 :]
        elif move.to_id is not None:
            path.append(move.to_id)
    before = [version for version in path if version != alias.target_id]
    usable = {version.version.id for version in versions.by_id(session, before).values() if _is_usable(version)}
    usable |= {one.version.id for one in releases.by_id(session, before).values() if one.version.deleted_at is None}
    return next((version for version in reversed(before) if version in usable), None)


def roll_back(session: Session, owner: Expert | Release, name: str, *, by: str, reason: str | None = None) -> Alias:
    """Point an alias to the version that it pointed to before, see ``previous``; also a protected one, at once: that
    version was there.

    Raises:
        NotFoundError: there is no such alias, or it was removed.
        ConflictError: there is no earlier version that could answer, or the alias was moved meanwhile.
    """
    alias = get(session, owner, name)
    session.refresh(alias, with_for_update=True)
    before = previous(session, alias)
    if before is None:
        raise ConflictError(
            f"'@{name}' of '{owner.name}' has pointed to no earlier version that could answer now. Move it to the "
            "version that shall."
        )
    left_id = alias.target_id
    assert left_id is not None
    by_id = versions.by_id if isinstance(owner, Expert) else releases.by_id
    to, left = by_id(session, [before])[before], by_id(session, [left_id])[left_id]
    why = f"rolled back from {left.name}" + (f": {reason}" if reason else "")
    return move(session, name, to, by=by, reason=why, expected=Expected(left_id), approved=True)


def _is_usable(record: VersionRecord) -> bool:
    return record.version.state in ("ready", "deprecated") and record.version.archived_at is None


def owner_of(record: VersionRecord | ReleaseRecord) -> Expert | Release:
    """The line of versions that a version belongs to, which has the aliases."""
    return record.expert if isinstance(record, VersionRecord) else record.release


def move(
    session: Session,
    name: str,
    to: VersionRecord | ReleaseRecord,
    *,
    by: str,
    reason: str | None = None,
    expected: Expected | None = None,
    approved: bool = False,
) -> Alias:
    """Point an alias to a version, whatever it points to now, or only if it points to ``expected``. Its canary and its
    shadow end.

    If it points to that version already, and has no canary, nothing is recorded. ``approved``: a second person has
    agreed, or nobody's approval is needed.

    Raises:
        ConflictError: it points to another version than expected, with who moved it; or it is protected.
        NotFoundError: the version was deleted meanwhile.
    """
    owner, target = owner_of(to), "version_id" if isinstance(to, VersionRecord) else "release_version_id"
    if not approved:
        protection.refuse_protected(session, owner, name, "a move of it")
    _keep(session, to)
    new = {"id": new_id(), "org_id": owner.org_id, "name": name, target: to.version.id}
    new |= {"expert_id" if isinstance(owner, Expert) else "release_id": owner.id}
    made = session.scalar(insert(Alias).values(new).on_conflict_do_nothing().returning(Alias.id))
    alias = session.scalars(select(Alias).where(_is_of(owner), Alias.name == name).with_for_update()).one()
    before = None if made is not None else alias.target_id
    if expected is not None and expected.version_id != before:
        raise _moved_meanwhile(session, alias, owner)
    if before == to.version.id and alias.canary_version_id is None:
        return alias
    shadows.end(session, alias.id)
    record = AliasMove(org_id=owner.org_id, alias_id=alias.id, by=by, reason=reason)
    setattr(record, f"from_{target}", before)
    setattr(record, f"to_{target}", to.version.id)
    session.add(record)
    return _changed(session, alias, {target: to.version.id, "canary_version_id": None, "canary_share": None})


def start_canary(
    session: Session,
    alias: Alias,
    to: ReleaseRecord,
    share: float,
    *,
    by: str,
    reason: str | None = None,
    expected: Expected | None = None,
    approved: bool = False,
) -> None:
    """Send ``share`` of an alias's requests, in (0, 1), to another version of its release, until the alias is moved.

    Raises:
        ConflictError: it points to another version than expected, to nothing, or to this version; or it is protected,
            and nobody has ``approved``.
        NotFoundError: the version was deleted meanwhile.
    """
    if not approved:
        protection.refuse_protected(session, to.release, alias.name, "a canary of it")
    _keep(session, to)
    session.refresh(alias, with_for_update=True)
    if expected is not None and expected.version_id != alias.target_id:
        raise _moved_meanwhile(session, alias, to.release)
    if alias.target_id in (None, to.version.id):
        points = "nothing" if alias.target_id is None else f"{to.name} already"
        raise ConflictError(f"'@{alias.name}' points to {points}: there is no other version to share requests with.")
    canary = {"canary_version_id": to.version.id, "canary_share": share}
    if (alias.canary_version_id, alias.canary_share) == (to.version.id, share):
        return
    stays = {"from_release_version_id": alias.target_id, "to_release_version_id": alias.target_id}
    session.add(AliasMove(org_id=alias.org_id, alias_id=alias.id, by=by, reason=reason, **stays, **canary))
    _changed(session, alias, canary)


def remove(session: Session, alias: Alias, *, by: str, reason: str | None = None) -> None:
    """Let an alias point to nothing: no request can name it, and ``auto`` leaves the expert out. Its moves stay.

    Raises:
        ConflictError: a schedule watches it, or it is protected.
    """
    owner = session.get_one(Expert, alias.expert_id) if alias.expert_id else session.get_one(Release, alias.release_id)
    protection.refuse_protected(session, owner, alias.name, "its removal")
    session.refresh(alias, with_for_update=True)
    watching = select(Schedule.name).where(Schedule.watched_alias_id == alias.id, Schedule.deleted_at.is_(None))
    if (schedule := session.scalar(watching.limit(1))) is not None:
        raise ConflictError(
            f"The schedule '{schedule}' trains when the version of '@{alias.name}' gets worse. Remove or change the "
            "schedule first."
        )
    if alias.target_id is None:
        return
    shadows.end(session, alias.id)
    removed = {"from_version_id": alias.version_id, "from_release_version_id": alias.release_version_id}
    session.add(AliasMove(org_id=alias.org_id, alias_id=alias.id, by=by, reason=reason, **removed))
    targets = ("version_id", "release_version_id", "canary_version_id", "canary_share")
    _changed(session, alias, dict.fromkeys(targets))


def of_versions(session: Session, version_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[str]]:
    """The names of the aliases that point to each of these versions of experts or releases, for those that have any."""
    names: dict[uuid.UUID, list[str]] = {}
    pointing = select(Alias).where(or_(Alias.version_id.in_(version_ids), Alias.release_version_id.in_(version_ids)))
    for alias in session.scalars(pointing.order_by(Alias.name)):
        if alias.target_id is not None:
            names.setdefault(alias.target_id, []).append(alias.name)
    return names


def list_aliases(session: Session, project_id: uuid.UUID) -> list[Alias]:
    """The aliases of the project's experts, then of its releases, by name."""
    of_experts = select(Alias).join(Expert, Expert.id == Alias.expert_id).order_by(Expert.name, Alias.name)
    of_releases = select(Alias).join(Release, Release.id == Alias.release_id).order_by(Release.name, Alias.name)
    return [
        *session.scalars(of_experts.where(Expert.project_id == project_id, Alias.version_id.is_not(None))),
        *session.scalars(of_releases.where(Release.project_id == project_id, Alias.release_version_id.is_not(None))),
    ]


def moves(session: Session, alias: Alias) -> list[AliasMove]:
    """Every move of an alias, newest first."""
    return list(
        session.scalars(select(AliasMove).where(AliasMove.alias_id == alias.id).order_by(AliasMove.position.desc()))
    )


def _is_of(owner: Expert | Release) -> ColumnElement[bool]:
    return (Alias.expert_id if isinstance(owner, Expert) else Alias.release_id) == owner.id


def _keep(session: Session, to: VersionRecord | ReleaseRecord) -> None:
    if isinstance(to, VersionRecord):
        versions.keep(session, [to])
    else:
        releases.keep(session, to)


def _moved_meanwhile(session: Session, alias: Alias, owner: Expert | Release) -> ConflictError:
    """Who was first, when, and where the alias points to now: whoever comes second decides by that."""
    last = session.scalar(
        select(AliasMove).where(AliasMove.alias_id == alias.id).order_by(AliasMove.position.desc()).limit(1)
    )
    by_id = versions.by_id if isinstance(owner, Expert) else releases.by_id
    points = f"to {by_id(session, [alias.target_id])[alias.target_id].name}" if alias.target_id else "to nothing"
    who = f"{last.by} moved it at {last.created_at:%Y-%m-%d %H:%M:%S %Z}" if last else "nobody has moved it"
    return ConflictError(
        f"'@{alias.name}' of '{owner.name}' points to another version than expected, {points}: {who}. Move it from "
        "there, or leave it."
    )


def _changed(session: Session, alias: Alias, columns: Mapping[str, Any]) -> Alias:
    session.execute(update(Alias).where(Alias.id == alias.id).values(**columns, moved_at=func.now()))
    session.flush()
    session.refresh(alias)
    return alias
