"""Keys of projects and of the organisation: listed without their secrets, made, changed, rotated and revoked."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field

from zhub.database.sessions import tenant_session
from zhub.ids import parse_id
from zhub.models import User
from zhub.tenancy import managed_keys, organizations
from zhub.tenancy.managed_keys import DEFAULT_GRACE, NewKey
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.pages import Order, PageLimit, page, wanted_page
from zhub_api.rights import needs, needs_in_project
from zhub_api.routes.administration.objects import KeyName, Lasts, key_object, span

router = APIRouter(prefix="/v1/organization")

MAX_GRACE_S = 30 * 86_400
Scopes = Annotated[list[str], Field(max_length=100)]


class KeyRequest(Schema):
    """A new key. ``scopes``: what it may do at most; all that its maker may, where they are left out."""

    model_config = ConfigDict(extra="forbid")
    name: KeyName
    scopes: Scopes | None = None
    expires_in_seconds: Lasts = None


class KeyChange(Schema):
    """Other scopes, or another expiry, counted from now."""

    model_config = ConfigDict(extra="forbid")
    scopes: Scopes | None = None
    expires_in_seconds: Lasts = None


class AdminKeyRequest(Schema):
    model_config = ConfigDict(extra="forbid")
    name: KeyName
    expires_in_seconds: Lasts = None


class RotationRequest(Schema):
    """For how long the old key is still valid; 0: it is revoked at once."""

    model_config = ConfigDict(extra="forbid")
    grace_seconds: Annotated[int, Field(ge=0, le=MAX_GRACE_S)] = int(DEFAULT_GRACE.total_seconds())


@router.get("/projects/{project_id}/api_keys", dependencies=[needs_in_project("keys:read")])
def list_keys(
    caller: CallerDep, context: ContextDep, project_id: str, after: str | None = None, limit: PageLimit = 20
) -> dict[str, Any]:
    """The project's keys, newest first, without their secrets."""
    place = wanted_page("API key", after, limit)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = managed_keys.list_keys(session, parse_id("project", project_id), place)
        return page([key_object(session, row) for row in listed], has_more=has_more)


@router.post("/projects/{project_id}/api_keys", dependencies=[needs_in_project("keys:own")])
def create_key(caller: CallerDep, context: ContextDep, project_id: str, request: KeyRequest) -> dict[str, Any]:
    """Make a key of one's own. Only this response has its ``value``. Not in the dialect.

    Made with a key that is nobody's, it is the project's.
    """
    wanted = NewKey(request.name, request.scopes, span(request.expires_in_seconds))
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.get_project(session, parse_id("project", project_id))
        owner = None if caller.user_id is None else session.get(User, caller.user_id)
        row, value = managed_keys.make_key(
            session, caller, project, wanted, owner=owner, secret_key=_secret_key(context)
        )
        return key_object(session, row) | {"value": value}


@router.get("/projects/{project_id}/api_keys/{key_id}", dependencies=[needs_in_project("keys:read")])
def retrieve_key(caller: CallerDep, context: ContextDep, project_id: str, key_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        row = managed_keys.get_key(session, parse_id("project", project_id), parse_id("API key", key_id))
        return key_object(session, row)


@router.post("/projects/{project_id}/api_keys/{key_id}", dependencies=[needs_in_project("keys:own")])
def update_key(
    caller: CallerDep, context: ContextDep, project_id: str, key_id: str, request: KeyChange
) -> dict[str, Any]:
    """Change what a key may do, or when it expires."""
    with tenant_session(context.engine, caller.org_id) as session:
        row = managed_keys.get_key(session, parse_id("project", project_id), parse_id("API key", key_id))
        managed_keys.require_control(session, caller, row)
        lasts = span(request.expires_in_seconds)
        managed_keys.change_key(session, caller, row, scopes=request.scopes, lasts=lasts)
        return key_object(session, row)


@router.post("/projects/{project_id}/api_keys/{key_id}/rotate", dependencies=[needs_in_project("keys:own")])
def rotate_key(
    caller: CallerDep, context: ContextDep, project_id: str, key_id: str, request: RotationRequest | None = None
) -> dict[str, Any]:
    """Make a key in the place of another. Only this response has its ``value``. Not in the dialect."""
    with tenant_session(context.engine, caller.org_id) as session:
        row = managed_keys.get_key(session, parse_id("project", project_id), parse_id("API key", key_id))
        managed_keys.require_control(session, caller, row)
        grace = span((request or RotationRequest()).grace_seconds)
        assert grace is not None
        successor, value = managed_keys.rotate_key(session, caller, row, grace=grace, secret_key=_secret_key(context))
        return key_object(session, successor) | {"value": value}


@router.delete("/projects/{project_id}/api_keys/{key_id}", dependencies=[needs_in_project("keys:own")])
def revoke_key(caller: CallerDep, context: ContextDep, project_id: str, key_id: str) -> dict[str, Any]:
    """Refuse a key from now on, everywhere."""
    with tenant_session(context.engine, caller.org_id) as session:
        row = managed_keys.get_key(session, parse_id("project", project_id), parse_id("API key", key_id))
        managed_keys.require_control(session, caller, row)
        managed_keys.revoke_key(session, caller, row)
    return {"id": key_id, "object": "organization.project.api_key.deleted", "deleted": True}


@router.post("/admin_api_keys", dependencies=[needs("organization:write")])
def create_admin_key(caller: CallerDep, context: ContextDep, request: AdminKeyRequest) -> dict[str, Any]:
    """Make a key that manages the organisation, and reaches no project's data. Only this response has its ``value``."""
    wanted = NewKey(request.name, None, span(request.expires_in_seconds))
    with tenant_session(context.engine, caller.org_id) as session:
        row, value = managed_keys.make_admin_key(session, caller, wanted, secret_key=_secret_key(context))
        return key_object(session, row) | {"value": value}


@router.get("/admin_api_keys", dependencies=[needs("organization:write")])
def list_admin_keys(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "desc",
) -> dict[str, Any]:
    """The organisation's own keys, without their secrets."""
    place = wanted_page("API key", after, limit, order)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = managed_keys.list_keys(session, None, place)
        return page([key_object(session, row) for row in listed], has_more=has_more)


@router.get("/admin_api_keys/{key_id}", dependencies=[needs("organization:write")])
def retrieve_admin_key(caller: CallerDep, context: ContextDep, key_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return key_object(session, managed_keys.get_key(session, None, parse_id("API key", key_id)))


@router.delete("/admin_api_keys/{key_id}", dependencies=[needs("organization:write")])
def revoke_admin_key(caller: CallerDep, context: ContextDep, key_id: str) -> dict[str, Any]:
    """Refuse a key of the organisation from now on, everywhere."""
    with tenant_session(context.engine, caller.org_id) as session:
        managed_keys.revoke_key(session, caller, managed_keys.get_key(session, None, parse_id("API key", key_id)))
    return {"id": key_id, "object": "organization.admin_api_key.deleted", "deleted": True}


def _secret_key(context: Context) -> str:
    return context.settings.secret_key.get_secret_value()
