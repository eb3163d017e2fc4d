"""``/v1/aliases``: which version of an expert, or of a release, is the one to use."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub import models
from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.ids import public_id
from zhub.models import Alias, AliasMove, Expert, Project, Release
from zhub.registry import alias_requests, aliases, grants, releases, sharing, versions
from zhub.registry.names import OF_ORGANIZATION
from zhub.registry.versions import VersionRecord
from zhub.tenancy import audit
from zhub.tenancy.audit import Actor
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1")


class AliasRequest(Schema):
    """The version that an alias shall point to. With ``expected``, only if it points to that now; null: only if new."""

    model_config = ConfigDict(extra="forbid")
    version: str
    expected: str | None = None
    reason: str | None = None


class RollbackRequest(Schema):
    """Why an alias goes back."""

    model_config = ConfigDict(extra="forbid")
    reason: str | None = None


class ReleaseAliasRequest(AliasRequest):
    """As of an expert; with ``share`` the alias stays, and sends that share of its requests to ``version``."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None


@router.get("/aliases", dependencies=[needs("models:read")])
def list_aliases(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """The aliases of the project's experts and releases."""
    with tenant_session(context.engine, caller.org_id) as session:
        objects = alias_objects(session, aliases.list_aliases(session, caller.project_id))
    return page(objects, has_more=False)


@router.get("/experts/{expert}/aliases/{alias}", dependencies=[needs("models:read")])
def retrieve_alias(caller: CallerDep, context: ContextDep, expert: str, alias: str) -> dict[str, Any]:
    """The version that ``<project>.<expert>@<alias>`` points to, null once removed, and every move, newest first."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _with_moves(session, versions.get_expert(session, caller, expert), alias)


@router.get("/releases/{release}/aliases/{alias}", dependencies=[needs("models:read")])
def retrieve_release_alias(caller: CallerDep, context: ContextDep, release: str, alias: str) -> dict[str, Any]:
    """The version that ``<project>.<release>@<alias>`` points to, its canary, and every move, newest first."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _with_moves(session, releases.get_release(session, caller, release), alias)


@router.put("/experts/{expert}/aliases/{alias}", dependencies=[needs("models:write")])
def move_alias(
    caller: CallerDep, context: ContextDep, response: Response, expert: str, alias: str, request: AliasRequest
) -> dict[str, Any]:
    """Let an alias point to a version, without a gate: the first one, an earlier one, or one that a gate refused.

    Also of an expert of another organisation that the key's may `manage`. Where the alias is protected, the answer is
    202 and an ``alias.request``, which somebody else approves.
    """
    aliases.check_alias(alias, param="alias")
    with tenant_session(context.engine, caller.org_id) as session:
        if OF_ORGANIZATION.fullmatch(expert) is None:
            owner = versions.get_expert(session, caller, expert)
            return _move(session, caller, owner, alias, request, response)
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
        answer = _move(session, caller, found.expert, alias, local, response)
    named = ("alias", "version") if answer["object"] == "alias.request" else ("id", "version")
    return {name: f"{prefix}{value}" if name in named else value for name, value in answer.items()}


@router.put("/releases/{release}/aliases/{alias}", dependencies=[needs("models:write")])
def move_release_alias(
    caller: CallerDep, context: ContextDep, response: Response, release: str, alias: str, request: ReleaseAliasRequest
) -> dict[str, Any]:
    """Let an alias point to a version of a release, or send a ``share`` of its requests to one.

    Where the alias is protected, the answer is 202 and an ``alias.request``, which somebody else approves.
    """
    aliases.check_alias(alias, param="alias")
    with tenant_session(context.engine, caller.org_id) as session:
        owner = releases.get_release(session, caller, release)
        to = releases.get(session, caller.project_id, request.version)
        _check_of_owner(to.release.id == owner.id, request, release)
        expected = _expected(request, partial(releases.get, session, caller.project_id))
        asker, before = alias_requests.asker_of(caller), _pointed_to(session, owner, alias)
        moved = alias_requests.move(
            session, alias, to, asker, reason=request.reason, expected=expected, share=request.share
        )
        after = {"version": to.name, "share": request.share}
        _audit_move(session, caller, owner, f"{release}@{alias}", moved, before, after)
        return _moved(session, moved, response)


@router.post("/experts/{expert}/aliases/{alias}/rollback", dependencies=[needs("models:write")])
def roll_back_alias(
    caller: CallerDep, context: ContextDep, expert: str, alias: str, request: RollbackRequest
) -> dict[str, Any]:
    """Let an alias point again to the version that it pointed to before. It needs nobody's approval."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _rolled_back(session, caller, versions.get_expert(session, caller, expert), alias, request)


@router.post("/releases/{release}/aliases/{alias}/rollback", dependencies=[needs("models:write")])
def roll_back_release_alias(
    caller: CallerDep, context: ContextDep, release: str, alias: str, request: RollbackRequest
) -> dict[str, Any]:
    """Let an alias of a release point again to the version that it pointed to before."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _rolled_back(session, caller, releases.get_release(session, caller, release), alias, request)


@router.delete("/experts/{expert}/aliases/{alias}", dependencies=[needs("models:write")])
def remove_alias(caller: CallerDep, context: ContextDep, expert: str, alias: str) -> dict[str, Any]:
    """Let an alias point to nothing: ``auto`` leaves the expert out where it is ``prod``. Its moves stay."""
    with tenant_session(context.engine, caller.org_id) as session:
        _remove(session, caller, versions.get_expert(session, caller, expert), alias)
    return {"id": f"{expert}@{alias}", "object": "expert.alias", "deleted": True}


@router.delete("/releases/{release}/aliases/{alias}", dependencies=[needs("models:write")])
def remove_release_alias(caller: CallerDep, context: ContextDep, release: str, alias: str) -> dict[str, Any]:
    """Let an alias point to nothing, and end its canary. Its moves stay."""
    with tenant_session(context.engine, caller.org_id) as session:
        _remove(session, caller, releases.get_release(session, caller, release), alias)
    return {"id": f"{release}@{alias}", "object": "release.alias", "deleted": True}


def _move(
    session: Session, caller: Caller, owner: Expert, alias: str, request: AliasRequest, response: Response
) -> dict[str, Any]:
    find = partial(versions.get_version, session, owner.project_id)
    to = find(request.version)
    aliases.check_promotable(to)
    _check_of_owner(to.expert.id == owner.id, request, owner.name)
    asker, before = alias_requests.asker_of(caller), _pointed_to(session, owner, alias)
    moved = alias_requests.move(session, alias, to, asker, reason=request.reason, expected=_expected(request, find))
    target = f"{to.name.partition('@')[0]}@{alias}"
    _audit_move(session, caller, owner, target, moved, before, {"version": to.name})
    return _moved(session, moved, response)


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


def request_objects(session: Session, listed: Sequence[models.AliasRequest]) -> list[dict[str, Any]]:
    """What is asked for of protected aliases, and what became of it."""
    names = _names(session, [target for one in listed for target in (one.target_id, one.expected_id)])
    statuses = alias_requests.statuses(session, listed)
    return [
        {
            "id": public_id("alias request", one.id),
            "object": "alias.request",
            "created_at": int(one.created_at.timestamp()),
            "alias": f"{names[one.target_id].partition('@')[0]}@{one.alias}",
            "version": names[one.target_id],
            "expected": names.get(one.expected_id),
            "share": one.share,
            "promotion": public_id("promotion", one.promotion_id) if one.promotion_id else None,
            "by": one.by,
            "person": one.person,
            "reason": one.reason,
            "status": statuses[one.id],
            "expires_at": int(one.expires_at.timestamp()),
            "decided_at": int(one.decided_at.timestamp()) if one.decided_at else None,
            "decided_by": one.decided_by,
            "decided_because": one.decided_because,
        }
        for one in listed
    ]


def _moved(session: Session, moved: Alias | models.AliasRequest, response: Response) -> dict[str, Any]:
    if isinstance(moved, Alias):
        return alias_objects(session, [moved])[0]
    response.status_code = 202
    return request_objects(session, [moved])[0]


def _rolled_back(
    session: Session, caller: Caller, owner: Expert | Release, name: str, request: RollbackRequest
) -> dict[str, Any]:
    before = _pointed_to(session, owner, name)
    moved = aliases.roll_back(session, owner, name, by=public_id("API key", caller.key_id), reason=request.reason)
    told = alias_objects(session, [moved])[0]
    target = f"{caller.project}.{owner.name}@{name}"
    _audit_move(session, caller, owner, target, moved, before, {"version": told["version"], "rolled_back": True})
    return told


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
    before = _pointed_to(session, owner, name)
    aliases.remove(session, aliases.get(session, owner, name), by=public_id("API key", caller.key_id))
    audit.record(session, caller, "alias.deleted", f"{caller.project}.{owner.name}@{name}", before={"version": before})


def _pointed_to(session: Session, owner: Expert | Release, alias: str) -> str | None:
    version_id = aliases.current(session, owner, alias)
    return _names(session, [version_id]).get(version_id)


def _audit_move(
    session: Session,
    caller: Caller,
    owner: Expert | Release,
    target: str,
    moved: Alias | models.AliasRequest,
    before: str | None,
    after: Mapping[str, Any],
) -> None:
    if {"version": before} == {name: value for name, value in after.items() if value is not None}:
        return
    action = "alias_request.created" if isinstance(moved, models.AliasRequest) else "alias.moved"
    if owner.org_id == caller.org_id:
        audit.record(session, caller, action, target, before={"version": before}, after=after)
        return
    # A manager from another organisation: the log is the owner's, whose database knows no such key.
    who = Actor(f"{audit.actor_of(caller).name}, of another organisation", origin=caller.origin)
    at = {"project_id": owner.project_id}
    audit.add(session, owner.org_id, who, action, target, **at, before={"version": before}, after=after)
