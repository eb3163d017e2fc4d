"""``/v1/platform/organizations``: what operators do, who are above all organisations and see nothing of theirs."""

import uuid
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel as Schema
from pydantic import ConfigDict

from zhub.database.sessions import now, operator_session
from zhub.ids import new_id, parse_id, public_id
from zhub.tenancy import audit, invitations, organizations
from zhub.tenancy.keys import NOWHERE, Caller
from zhub.tenancy.scopes import Role
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import PageLimit, page, wanted_page
from zhub_api.rights import needs
from zhub_api.routes.administration.objects import invitation_object, organization_object, project_object

router = APIRouter(prefix="/v1/platform/organizations")


class OrganizationRequest(Schema):
    """A new organisation, its first project, and the address of its first owner."""

    model_config = ConfigDict(extra="forbid")
    name: str
    owner: str
    project: str = "default"


class OwnerRequest(Schema):
    model_config = ConfigDict(extra="forbid")
    email: str


@router.get("", dependencies=[needs("platform_organizations:write")])
def list_organizations(
    _caller: CallerDep, context: ContextDep, after: str | None = None, limit: PageLimit = 20
) -> dict[str, Any]:
    """All organisations, newest first."""
    place = wanted_page("organization", after, limit)
    with operator_session(context.engine) as session:
        listed, has_more = organizations.list_organizations(session, place)
    return page([organization_object(organization) for organization in listed], has_more=has_more)


@router.post("", dependencies=[needs("platform_organizations:write")])
def create_organization(caller: CallerDep, context: ContextDep, request: OrganizationRequest) -> dict[str, Any]:
    """Make an organisation. Its owner accepts by the ``token`` of the ``invitation``, which only this response has."""
    org_id = new_id()
    with operator_session(context.engine, org_id) as session:
        organization = organizations.create_organization(session, request.name, org_id=org_id)
        project = organizations.create_project(session, org_id, request.project)
        session.refresh(organization)
        session.refresh(project)
        operator = _within(caller, organization.id)
        target = public_id("organization", org_id)
        audit.record(session, operator, "organization.created", target, after={"name": request.name})
        row, token = invitations.invite(session, operator, request.owner, Role.OWNER, {})
        return organization_object(organization) | {
            "project": project_object(project),
            "invitation": invitation_object(row, now(session)) | {"token": token},
        }


@router.post("/{org_id}/owners", dependencies=[needs("platform_organizations:write")])
def invite_owner(caller: CallerDep, context: ContextDep, org_id: str, request: OwnerRequest) -> dict[str, Any]:
    """Invite an owner, for an organisation that has none who can. Its audit log says so."""
    of = parse_id("organization", org_id)
    with operator_session(context.engine, of) as session:
        organizations.get_organization(session, of)
        row, token = invitations.invite(session, _within(caller, of), request.email, Role.OWNER, {})
        return invitation_object(row, now(session)) | {"token": token}


@router.post("/{org_id}/suspend", dependencies=[needs("platform_organizations:write")])
def suspend_organization(caller: CallerDep, context: ContextDep, org_id: str) -> dict[str, Any]:
    """Refuse all keys of an organisation from now on. What it owns stays as it is."""
    of = parse_id("organization", org_id)
    with operator_session(context.engine, of) as session:
        organization = organizations.get_organization(session, of)
        organizations.suspend(session, organization)
        audit.record(session, _within(caller, of), "organization.suspended", org_id)
        return organization_object(organization)


@router.post("/{org_id}/resume", dependencies=[needs("platform_organizations:write")])
def resume_organization(caller: CallerDep, context: ContextDep, org_id: str) -> dict[str, Any]:
    """Accept the organisation's keys again."""
    of = parse_id("organization", org_id)
    with operator_session(context.engine, of) as session:
        organization = organizations.get_organization(session, of)
        organizations.resume(session, organization)
        audit.record(session, _within(caller, of), "organization.resumed", org_id)
        return organization_object(organization)


def _within(caller: Caller, org_id: uuid.UUID) -> Caller:
    """The operator in an organisation that its key is not of, and whose audit log cannot name it."""
    return Caller(NOWHERE, org_id, NOWHERE, "", caller.scopes, caller.granted, origin=caller.origin)
