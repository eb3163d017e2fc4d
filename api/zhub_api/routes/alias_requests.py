"""``/v1/protected_aliases`` and ``/v1/alias_requests``: aliases that move once a second person has approved it."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field

from zhub.database.sessions import tenant_session
from zhub.ids import parse_id
from zhub.models import AliasProtection
from zhub.registry import alias_requests, aliases, protection
from zhub.registry.alias_requests import Decision, Status
from zhub.tenancy import audit
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import PageLimit, page
from zhub_api.rights import needs
from zhub_api.routes.aliases import request_objects

router = APIRouter(prefix="/v1")

MAX_HOURS = 90 * 24


class ProtectionRequest(Schema):
    """How long a request for a move waits for its approval."""

    model_config = ConfigDict(extra="forbid")
    request_hours: Annotated[int, Field(strict=True, ge=1, le=MAX_HOURS)] = 168


class DecisionRequest(Schema):
    """``approve`` and ``reject`` are for anybody else, ``withdraw`` for whoever asked."""

    model_config = ConfigDict(extra="forbid")
    decision: Decision
    reason: Annotated[str, Field(max_length=500)] | None = None


@router.get("/protected_aliases", dependencies=[needs("models:read")])
def list_protected_aliases(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """The names of aliases that are protected in the project, of experts and releases."""
    with tenant_session(context.engine, caller.org_id) as session:
        return page(_objects(protection.list_protected(session, caller.project_id)), has_more=False)


@router.put("/protected_aliases/{alias}", dependencies=[needs("project:write")])
def protect_alias(caller: CallerDep, context: ContextDep, alias: str, request: ProtectionRequest) -> dict[str, Any]:
    """Protect the project's aliases of this name: a move of one is a request, which a second person approves."""
    aliases.check_alias(alias, param="alias")
    with tenant_session(context.engine, caller.org_id) as session:
        protected = protection.protect(session, caller, alias, request_hours=request.request_hours)
        audit.record(session, caller, "alias.protected", alias, after={"request_hours": request.request_hours})
        return _objects([protected])[0]


@router.delete("/protected_aliases/{alias}", dependencies=[needs("project:write")])
def unprotect_alias(caller: CallerDep, context: ContextDep, alias: str) -> dict[str, Any]:
    """Let the project's aliases of this name move at once again. Open requests may still be approved."""
    with tenant_session(context.engine, caller.org_id) as session:
        protection.unprotect(session, caller, alias)
        audit.record(session, caller, "alias.unprotected", alias)
    return {"id": alias, "object": "protected_alias", "deleted": True}


@router.get("/alias_requests", dependencies=[needs("models:read")])
def list_alias_requests(
    caller: CallerDep,
    context: ContextDep,
    status: Status | None = None,
    after: str | None = None,
    limit: PageLimit = 20,
) -> dict[str, Any]:
    """The moves of protected aliases that were asked for, newest first: all, or those of a ``status``."""
    last = parse_id("alias request", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = alias_requests.list_requests(
            session, caller.project_id, status=status, after=last, limit=limit
        )
        return page(request_objects(session, listed), has_more=has_more)


@router.get("/alias_requests/{request_id}", dependencies=[needs("models:read")])
def retrieve_alias_request(caller: CallerDep, context: ContextDep, request_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        request = alias_requests.get(session, caller.project_id, parse_id("alias request", request_id))
        return request_objects(session, [request])[0]


@router.post("/alias_requests/{request_id}/decision", dependencies=[needs("models:write")])
def decide_alias_request(
    caller: CallerDep, context: ContextDep, request_id: str, decision: DecisionRequest
) -> dict[str, Any]:
    """Approve a move, which then happens; reject it; or withdraw it."""
    with tenant_session(context.engine, caller.org_id) as session:
        request = alias_requests.get(session, caller.project_id, parse_id("alias request", request_id))
        alias_requests.decide(session, caller, request, decision.decision, decision.reason)
        told = request_objects(session, [request])[0]
        after = {name: told[name] for name in ("alias", "version", "share", "status")}
        audit.record(session, caller, "alias_request.decided", request_id, before={"status": "open"}, after=after)
        return told


def _objects(listed: Sequence[AliasProtection]) -> list[dict[str, Any]]:
    return [
        {
            "id": one.name,
            "object": "protected_alias",
            "created_at": int(one.created_at.timestamp()),
            "by": one.by,
            "request_hours": one.request_hours,
        }
        for one in listed
    ]
