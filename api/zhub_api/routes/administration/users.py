"""``/v1/organization/users`` and ``/v1/organization/invites``: who is in the organisation, and how they come in."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field

from zhub.database.sessions import now, tenant_session
from zhub.ids import parse_id
from zhub.tenancy import invitations, members
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import PageLimit, page, wanted_page
from zhub_api.rights import needs
from zhub_api.routes.administration.objects import invitation_object, user_object

router = APIRouter(prefix="/v1/organization")


class UserChange(Schema):
    """Another role in the organisation."""

    model_config = ConfigDict(extra="forbid")
    role: str


class ProjectRole(Schema):
    """A role in a project: ``admin``, ``developer`` or ``viewer``."""

    model_config = ConfigDict(extra="forbid")
    id: str
    role: str


class InvitationRequest(Schema):
    """Whom to invite, as what: ``owner``, ``admin``, ``developer``, ``viewer``, or ``member`` of projects alone."""

    model_config = ConfigDict(extra="forbid")
    email: str
    role: str
    projects: Annotated[list[ProjectRole], Field(max_length=100)] = []


@router.get("/users", dependencies=[needs("organization:read")])
def list_users(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: PageLimit = 20,
    emails: Annotated[list[str], Query(max_length=100)] = [],  # noqa: B006  # FastAPI copies it
    emails_in_brackets: Annotated[list[str], Query(alias="emails[]", max_length=100)] = [],  # noqa: B006
) -> dict[str, Any]:
    """The people of the organisation, newest first."""
    place = wanted_page("user", after, limit)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = members.list_users(session, place, emails=[*emails, *emails_in_brackets])
    return page([user_object(user) for user in listed], has_more=has_more)


@router.get("/users/{user_id}", dependencies=[needs("organization:read")])
def retrieve_user(caller: CallerDep, context: ContextDep, user_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return user_object(members.get_user(session, parse_id("user", user_id)))


@router.post("/users/{user_id}", dependencies=[needs("organization:write")])
def update_user(caller: CallerDep, context: ContextDep, user_id: str, request: UserChange) -> dict[str, Any]:
    """Give somebody another role. It holds for all their keys at once."""
    role = members.read_role(request.role)
    with tenant_session(context.engine, caller.org_id) as session:
        user = members.get_user(session, parse_id("user", user_id))
        members.set_role(session, caller, user, role)
        return user_object(user)


@router.delete("/users/{user_id}", dependencies=[needs("organization:write")])
def remove_user(caller: CallerDep, context: ContextDep, user_id: str) -> dict[str, Any]:
    """Let somebody leave the organisation. All their keys are refused at once."""
    with tenant_session(context.engine, caller.org_id) as session:
        members.remove_user(session, caller, members.get_user(session, parse_id("user", user_id)))
    return {"id": user_id, "object": "organization.user.deleted", "deleted": True}


@router.post("/invites", dependencies=[needs("organization:write")])
def create_invitation(caller: CallerDep, context: ContextDep, request: InvitationRequest) -> dict[str, Any]:
    """Invite somebody. Only this response has the ``token`` by which they accept: pass it on to them, and to no other.

    An earlier invitation of the address is taken back.
    """
    role = members.read_role(request.role)
    projects = {parse_id("project", given.id): members.read_project_role(given.role) for given in request.projects}
    with tenant_session(context.engine, caller.org_id) as session:
        row, token = invitations.invite(session, caller, request.email, role, projects)
        return invitation_object(row, now(session)) | {"token": token}


@router.get("/invites", dependencies=[needs("organization:read")])
def list_invitations(
    caller: CallerDep, context: ContextDep, after: str | None = None, limit: PageLimit = 20
) -> dict[str, Any]:
    """The invitations that were not taken back, newest first."""
    place = wanted_page("invitation", after, limit)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = invitations.list_invitations(session, place)
        at = now(session)
    return page([invitation_object(row, at) for row in listed], has_more=has_more)


@router.get("/invites/{invite_id}", dependencies=[needs("organization:read")])
def retrieve_invitation(caller: CallerDep, context: ContextDep, invite_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        row = invitations.get_invitation(session, parse_id("invitation", invite_id))
        return invitation_object(row, now(session))


@router.delete("/invites/{invite_id}", dependencies=[needs("organization:write")])
def delete_invitation(caller: CallerDep, context: ContextDep, invite_id: str) -> dict[str, Any]:
    """Take an invitation back that was not accepted yet."""
    with tenant_session(context.engine, caller.org_id) as session:
        row = invitations.get_invitation(session, parse_id("invitation", invite_id))
        invitations.revoke(session, caller, row)
    return {"id": invite_id, "object": "organization.invite.deleted", "deleted": True}
