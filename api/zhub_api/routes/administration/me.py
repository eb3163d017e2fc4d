"""``/v1/me``: whom a key stands for. ``/v1/invitations/accept``: how somebody gets their first."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, StringConstraints

from zhub.database.sessions import tenant_session
from zhub.ids import public_id
from zhub.models import Organization, User
from zhub.tenancy import invitations
from zhub.tenancy.keys import NOWHERE, role_in
from zhub_api.context import CallerDep, ContextDep, origin_of
from zhub_api.rights import needs
from zhub_api.routes.administration.objects import seconds, user_object

router = APIRouter(prefix="/v1")
keyless = APIRouter(prefix="/v1")

PersonName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Acceptance(Schema):
    """The token of an invitation, and how its bearer is called."""

    model_config = ConfigDict(extra="forbid")
    token: str
    name: PersonName


@router.get("/me", dependencies=[needs()])
def retrieve_me(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """Whom the key stands for, where, and what it may do there. Not in the dialect."""
    organization = user = project_role = None
    with tenant_session(context.engine, caller.org_id) as session:
        organization = session.get(Organization, caller.org_id)
        if caller.user_id is not None:
            user = session.get(User, caller.user_id)
            project_role = role_in(session, caller.user_id, caller.project_id)
    at_home = caller.project_id != NOWHERE
    return {
        "object": "me",
        "key_id": None if caller.key_id == NOWHERE else public_id("API key", caller.key_id),
        "organization": None
        if organization is None
        else {"id": public_id("organization", organization.id), "name": organization.name},
        "project": {"id": public_id("project", caller.project_id), "name": caller.project} if at_home else None,
        "user": None
        if user is None
        else {
            "id": public_id("user" if user.kind == "person" else "service account", user.id),
            "type": user.kind,
            "name": user.name,
            "email": user.email,
            "role": user.role,
            "project_role": None if project_role is None else project_role.word,
        },
        "scopes": sorted(caller.scopes),
    }


@keyless.post("/invitations/accept")
def accept_invitation(context: ContextDep, http_request: Request, request: Acceptance) -> dict[str, Any]:
    """Become a member of the organisation that invites. Only this response has the ``value`` of the first key.

    Asked without a key: the token shows who may.
    """
    user, row, value = invitations.accept_token(
        context.engine,
        request.token,
        request.name,
        secret_key=context.settings.secret_key.get_secret_value(),
        origin=origin_of(http_request),
    )
    return {
        "object": "invitation.accepted",
        "user": user_object(user),
        "api_key": {
            "id": public_id("API key", row.id),
            "object": "organization.project.api_key",
            "name": row.name,
            "project_id": None if row.project_id is None else public_id("project", row.project_id),
            "expires_at": seconds(row.expires_at),
            "value": value,
        },
    }
