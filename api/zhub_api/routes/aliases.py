"""``/v1/aliases``: which version of an expert, or of a release, is the one to use."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.ids import public_id
from zhub.models import Alias, AliasMove, Expert, Project, Release
from zhub.registry import aliases, grants, releases, sharing, versions
from zhub.registry.names import OF_ORGANIZATION
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page

router = APIRouter(prefix="/v1")


class AliasRequest(Schema):
    """The version that an alias shall point to. With ``expected``, only if it points to that now; null: only if new."""

    model_config = ConfigDict(extra="forbid")
    version: str
    expected: str | None = None
    reason: str | None = None


class ReleaseAliasRequest(AliasRequest):
    """As of an expert; with ``share`` the alias stays, and sends that share of its requests to ``version``."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None


@router.get("/aliases")
def list_aliases(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """The aliases of the project's experts and releases."""
    caller.require("models:read")
    with tenant_session(context.engine, caller.org_id) as session:
        objects = alias_objects(session, aliases.list_aliases(session, caller.project_id))
    return page(objects, has_more=False)


@router.get("/experts/{expert}/aliases/{alias}")
def retrieve_alias(caller: CallerDep, context: ContextDep, expert: str, alias: str) -> dict[str, Any]:
    """The version that ``<project>.<expert>@<alias>`` points to, null once removed, and every move, newest first."""
    caller.require("models:read")
    with tenant_session(context.engine, caller.org_id) as session:
        return _with_moves(session, versions.get_expert(session, caller, expert), alias)


@router.get("/releases/{release}/aliases/{alias}")
def retrieve_release_alias(caller: CallerDep, context: ContextDep, release: str, alias: str) -> dict[str, Any]:
    """The version that ``<project>.<release>@<alias>`` points to, its canary, and every move, newest first."""
    caller.require("models:read")
    with tenant_session(context.engine, caller.org_id) as session:
        return _with_moves(session, releases.get_release(session, caller, release), alias)


@router.put("/experts/{expert}/aliases/{alias}")
def move_alias(
    caller: CallerDep, context: ContextDep, expert: str, alias: str, request: AliasRequest
) -> dict[str, Any]:
    """Let an alias point to a version, without a gate: the first one, an earlier one, or one that a gate refused.

    Also of an expert of another organisation that the key's may `manage`.
    """
    caller.require("models:write")
    aliases.check_alias(alias, param="alias")
    with tenant_session(context.engine, caller.org_id) as session:
        if OF_ORGANIZATION.fullmatch(expert) is None:
            owner = versions.get_expert(session, caller, expert)
            return _move(session, caller, owner, alias, request)
        found = sharing.find(session, caller, expert, "manage")
        held = sharing.managing_grants(session, caller, found.expert)
    with tenant_session(context.engine, found.expert.org_id) as session:
        # In the owner's own transaction, in which nobody revokes the grant.
        if not grants.hold(session, held):
            raise NotFoundError("expert", expert)
        prefix = f"{found.organization}."
        local = request.model_copy(
            update={
                name: value.removeprefix(prefix)
                for name in request.model_fields_set & {"version", "expected"}
                if (value := getattr(request, name)) is not None
            }
        )
        answer = _move(session, caller, found.expert, alias, local)
    return {name: f"{prefix}{value}" if name in ("id", "version") else value for name, value in answer.items()}


@router.put("/releases/{release}/aliases/{alias}")
def move_release_alias(
    caller: CallerDep, context: ContextDep, release: str, alias: str, request: ReleaseAliasRequest
) -> dict[str, Any]:
    """Let an alias point to a version of a release, or send a ``share`` of its requests to one."""
    caller.require("models:write")
    aliases.check_alias(alias, param="alias")
    with tenant_session(context.engine, caller.org_id) as session:
        owner = releases.get_release(session, caller, release)
        to = releases.get(session, caller.project_id, request.version)
        _check_of_owner(to.release.id == owner.id, request, release)
        expected = _expected(request, partial(releases.get, session, caller.project_id))
        by, reason = public_id("API key", caller.key_id), request.reason
        if request.share is None:
            moved = aliases.move(session, alias, to, by=by, reason=reason, expected=expected)
        else:
            moved = aliases.get(session, owner, alias)
            aliases.start_canary(session, moved, to, request.share, by=by, reason=reason, expected=expected)
        return alias_objects(session, [moved])[0]


@router.delete("/experts/{expert}/aliases/{alias}")
def remove_alias(caller: CallerDep, context: ContextDep, expert: str, alias: str) -> dict[str, Any]:
    """Let an alias point to nothing: ``auto`` leaves the expert out where it is ``prod``. Its moves stay."""
    caller.require("models:write")
    with tenant_session(context.engine, caller.org_id) as session:
        _remove(session, caller, versions.get_expert(session, caller, expert), alias)
    return {"id": f"{expert}@{alias}", "object": "expert.alias", "deleted": True}


@router.delete("/releases/{release}/aliases/{alias}")
def remove_release_alias(caller: CallerDep, context: ContextDep, release: str, alias: str) -> dict[str, Any]:
    """Let an alias point to nothing, and end its canary. Its moves stay."""
    caller.require("models:write")
    with tenant_session(context.engine, caller.org_id) as session:
        _remove(session, caller, releases.get_release(session, caller, release), alias)
    return {"id": f"{release}@{alias}", "object": "release.alias", "deleted": True}


def _move(session: Session, caller: Caller, owner: Expert, alias: str, request: AliasRequest) -> dict[str, Any]:
    find = partial(versions.get_version, session, owner.project_id)
    to = find(request.version)
    aliases.check_promotable(to)
    _check_of_owner(to.expert.id == owner.id, request, owner.name)
    by = public_id("API key", caller.key_id)
    moved = aliases.move(session, alias, to, by=by, reason=request.reason, expected=_expected(request, find))
    return alias_objects(session, [moved])[0]


def alias_objects(session: Session, listed: Sequence[Alias]) -> list[dict[str, Any]]:
    """Aliases of the caller's project; the version is null of one that was removed."""
    names = _names(session, [target for alias in listed for target in (alias.target_id, alias.canary_version_id)])
    owners = _owners(session, listed)
    return [
        {
            "id": f"{owners[alias.id]}@{alias.name}",
            "object": f"{_kind(alias)}.alias",
            "alias": alias.name,
            "version": names.get(alias.target_id),
            **_canary(alias, names),
            "moved_at": int(alias.moved_at.timestamp()),
        }
        for alias in listed
    ]


def _with_moves(session: Session, owner: Expert | Release, name: str) -> dict[str, Any]:
    alias = aliases.get(session, owner, name, also_removed=True)
    (answer,) = alias_objects(session, [alias])
    moves = aliases.moves(session, alias)
    names = _names(session, [target for move in moves for target in (move.from_id, move.to_id, move.canary_version_id)])
    return answer | {
        "moves": [
            {
                "id": public_id("alias move", move.id),
                "object": f"{_kind(alias)}.alias.move",
                "created_at": int(move.created_at.timestamp()),
                "from": names.get(move.from_id),
                "to": names.get(move.to_id),
                **(_canary(move, names) if alias.release_id else {}),
                "by": move.by,
                "reason": move.reason,
            }
            for move in moves
        ]
    }


def _kind(alias: Alias) -> Literal["expert", "release"]:
    return "expert" if alias.release_id is None else "release"


def _canary(of: Alias | AliasMove, names: Mapping[uuid.UUID | None, str]) -> dict[str, Any]:
    """Of an alias of a release, the version beside the one that it points to."""
    if isinstance(of, Alias) and of.release_id is None:
        return {}
    version = names.get(of.canary_version_id)
    return {"canary": None if version is None else {"version": version, "share": of.canary_share}}


def _names(session: Session, ids: Sequence[uuid.UUID | None]) -> dict[uuid.UUID | None, str]:
    """The names of these versions, of experts and of releases."""
    known = [version_id for version_id in ids if version_id is not None]
    of_experts, of_releases = versions.by_id(session, known), releases.by_id(session, known)
    return {
        **{version_id: record.name for version_id, record in of_experts.items()},
        **{version_id: record.name for version_id, record in of_releases.items()},
    }


def _owners(session: Session, listed: Sequence[Alias]) -> dict[uuid.UUID, str]:
    """By the id of the alias, ``<project>.<expert>`` or ``<project>.<release>``."""
    listed_ids = Alias.id.in_([alias.id for alias in listed])
    of_experts = select(Alias.id, Project.name, Expert.name).join(Expert, Expert.id == Alias.expert_id)
    of_releases = select(Alias.id, Project.name, Release.name).join(Release, Release.id == Alias.release_id)
    named = (
        of_experts.join(Project, Project.id == Expert.project_id),
        of_releases.join(Project, Project.id == Release.project_id),
    )
    return {
        alias_id: f"{project}.{name}"
        for statement in named
        for alias_id, project, name in session.execute(statement.where(listed_ids))
    }


def _expected(
    request: AliasRequest, find: Callable[[str], VersionRecord | releases.ReleaseRecord]
) -> aliases.Expected | None:
    """What the alias must point to now; None where the request does not say."""
    if "expected" not in request.model_fields_set:
        return None
    return aliases.Expected(find(request.expected).version.id if request.expected else None)


def _check_of_owner(is_of_owner: bool, request: AliasRequest, owner: str) -> None:
    if not is_of_owner:
        raise InvalidRequestError(f"'{request.version}' is no version of '{owner}'.", param="version")


def _remove(session: Session, caller: Caller, owner: Expert | Release, name: str) -> None:
    aliases.remove(session, aliases.get(session, owner, name), by=public_id("API key", caller.key_id))
