"""``/v1/grants``: experts shown, lent and opened to other organisations; and how much these use them."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel as Schema
from pydantic import ConfigDict
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.ids import parse_id, public_id
from zhub.models import ExpertGrant
from zhub.registry import grants, shared_usage, sharing, versions
from zhub.registry.grants import AccessRequest, Decision, Direction, GrantRequest, Visibility
from zhub.tenancy import audit
from zhub.tenancy.audit import Actor
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.pages import PageLimit, moment, page, wanted_page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1")

Status = Literal["requested", "active", "denied", "revoked", "withdrawn"]


class VisibilityRequest(Schema):
    """Who sees an expert without a grant."""

    model_config = ConfigDict(extra="forbid")
    visibility: Visibility
    """``private``: its project; ``organization``: all projects of its organisation, which then use it as their own;
    ``granted``: every organisation finds it, and asks for access; ``public``: every organisation uses it."""


@router.put("/experts/{name}/visibility", dependencies=[needs("grants:write")])
def set_visibility(caller: CallerDep, context: ContextDep, name: str, request: VisibilityRequest) -> dict[str, Any]:
    """Say who sees an expert without a grant. What is taken back ends within five seconds, also in running answers."""
    with tenant_session(context.engine, caller.org_id) as session:
        expert = versions.get_expert(session, caller, name.partition("@")[0])
        before = {"visibility": expert.visibility}
        grants.set_visibility(session, caller, expert, request.visibility)
        if before["visibility"] != expert.visibility:
            own = f"{caller.project}.{expert.name}"
            after = {"visibility": expert.visibility}
            audit.record(session, caller, "expert.visibility_changed", own, before=before, after=after)
        return {"id": f"{caller.project}.{expert.name}", "object": "expert.visibility", "visibility": expert.visibility}


@router.post("/grants", dependencies=[needs("grants:write")])
def give_grant(caller: CallerDep, context: ContextDep, request: GrantRequest) -> dict[str, Any]:
    """Let another organisation, or one project of it, view, use, fork or manage an expert. In place of the grant that
    it has."""
    with tenant_session(context.engine, caller.org_id) as session:
        grant = grants.give(session, caller, request)
        answer = _object(caller, grant)
        by = _log(session, caller, grant, "grant.given")
    _log_for_other(context, caller, grant, "grant.given", by)
    return answer


@router.post("/access_requests", dependencies=[needs("grants:write")])
def ask_for_access(caller: CallerDep, context: ContextDep, request: AccessRequest) -> dict[str, Any]:
    """Ask the owner of an expert that the key sees for more. The request is a grant with the status `requested`."""
    with tenant_session(context.engine, caller.org_id) as session:
        grant = grants.ask(session, caller, request)
        answer = _object(caller, grant)
        by = _log(session, caller, grant, "grant.requested")
    _log_for_other(context, caller, grant, "grant.requested", by)
    return answer


@router.get("/grants", dependencies=[needs("models:read")])
def list_grants(
    caller: CallerDep,
    context: ContextDep,
    direction: Direction = "given",
    status: Status | None = None,
    after: str | None = None,
    limit: PageLimit = 20,
) -> dict[str, Any]:
    """The grants and requests that the key's project gives, or receives, newest first."""
    with tenant_session(context.engine, caller.org_id) as session:
        wanted = wanted_page("grant", after, limit)
        listed, has_more = grants.list_grants(session, caller, direction, wanted, status=status)
    return page([_object(caller, grant) for grant in listed], has_more=has_more)


@router.get("/grants/{grant_id}", dependencies=[needs("models:read")])
def retrieve_grant(caller: CallerDep, context: ContextDep, grant_id: str) -> dict[str, Any]:
    """A grant, or a request for one, that the key's project gives or receives."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _object(caller, grants.get(session, caller, parse_id("grant", grant_id)))


@router.post("/grants/{grant_id}/decision", dependencies=[needs("grants:write")])
def decide_grant(caller: CallerDep, context: ContextDep, grant_id: str, request: Decision) -> dict[str, Any]:
    """Approve a request for access, as it was asked for or otherwise and until a time; or deny it."""
    with tenant_session(context.engine, caller.org_id) as session:
        grant = grants.decide(session, caller, parse_id("grant", grant_id), request)
        answer = _object(caller, grant)
        action = "grant.approved" if request.approve else "grant.denied"
        by = _log(session, caller, grant, action)
    _log_for_other(context, caller, grant, action, by)
    return answer


@router.delete("/grants/{grant_id}", dependencies=[needs("grants:write")])
def end_grant(caller: CallerDep, context: ContextDep, grant_id: str) -> dict[str, Any]:
    """Revoke a grant that the key's project gave, deny a request, or give up what it received. It ends within five
    seconds, also in running answers."""
    with tenant_session(context.engine, caller.org_id) as session:
        grant = grants.end(session, caller, parse_id("grant", grant_id))
        answer = _object(caller, grant)
        by = _log(session, caller, grant, "grant.ended")
    _log_for_other(context, caller, grant, "grant.ended", by)
    return answer


@router.get("/shared_usage", dependencies=[needs("models:read")])
def report_shared_usage(
    caller: CallerDep,
    context: ContextDep,
    start_time: Annotated[int, Query(ge=0, le=253402300799)] = 0,
    end_time: Annotated[int | None, Query(ge=0, le=253402300799)] = None,
) -> dict[str, Any]:
    """How much other organisations have used the experts of the key's project: by version and organisation."""
    with tenant_session(context.engine, caller.org_id) as session:
        until = moment(end_time) or datetime.now(UTC)
        used = shared_usage.report(session, caller.project_id, moment(start_time) or until, until)
    return page(
        [
            {
                "id": f"{caller.project}.{one.expert}@v{one.number}:{one.user}",
                "object": "shared_usage",
                "model": f"{caller.project}.{one.expert}@v{one.number}",
                "organization": one.user,
                "requests": one.requests,
                "prompt_tokens": one.prompt_tokens,
                "completion_tokens": one.completion_tokens,
            }
            for one in used
        ],
        has_more=False,
    )


def _object(caller: Caller, grant: ExpertGrant) -> dict[str, Any]:
    is_given = grant.org_id == caller.org_id
    is_past = grant.status == "active" and grant.expires_at is not None and grant.expires_at <= datetime.now(UTC)
    return {
        "id": public_id("grant", grant.id),
        "object": "grant",
        "direction": "given" if is_given else "received",
        "created_at": int(grant.created_at.timestamp()),
        "expert": grant.subject,
        "grantee": grant.grantee,
        "permission": grant.permission,
        "status": "expired" if is_past else grant.status,
        "message": grant.message,
        "expires_at": _seconds(grant.expires_at),
        "decided_at": _seconds(grant.decided_at),
        "ended_at": _seconds(grant.ended_at),
    }


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def _log(session: Session, caller: Caller, grant: ExpertGrant, action: str) -> str:
    """Write to the audit log of the caller's organisation, and return its name."""
    audit.record(session, caller, action, grant.subject, after=_facts(grant))
    return sharing.organization_name(session, caller)


def _log_for_other(context: Context, caller: Caller, grant: ExpertGrant, action: str, by: str) -> None:
    """Write to the other side's audit log, which is told of the caller's organisation and of nobody in it.

    In a transaction of its own, after that of the act: no transaction sees two organisations.
    """
    other = grant.grantee_org_id if grant.org_id == caller.org_id else grant.org_id
    with tenant_session(context.engine, other) as session:
        audit.add(session, other, Actor(f"somebody of {by}"), action, grant.subject, after=_facts(grant))


def _facts(grant: ExpertGrant) -> dict[str, Any]:
    return {
        "grantee": grant.grantee,
        "permission": grant.permission,
        "status": grant.status,
        "expires_at": _seconds(grant.expires_at),
    }
