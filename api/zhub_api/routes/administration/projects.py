"""``/v1/organization/projects``: the organisation's projects, and who has which role in each."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel as Schema
from pydantic import ConfigDict

from zhub.database.sessions import tenant_session
from zhub.ids import parse_id, public_id
from zhub.tenancy import audit, members, organizations, quotas
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import PageLimit, page, wanted_page
from zhub_api.rights import needs, needs_in_project
from zhub_api.routes.administration.objects import member_object, project_object

router = APIRouter(prefix="/v1/organization/projects")


class ProjectRequest(Schema):
    """A new project. Its name is part of the names of its experts, and stays."""

    model_config = ConfigDict(extra="forbid")
    name: str


class MemberRequest(Schema):
    """A role for somebody of the organisation: ``admin``, ``developer`` or ``viewer``."""

    model_config = ConfigDict(extra="forbid")
    role: str
    user_id: str | None = None
    email: str | None = None


class RoleRequest(Schema):
    model_config = ConfigDict(extra="forbid")
    role: str


@router.get("", dependencies=[needs("organization:read")])
def list_projects(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: PageLimit = 20,
    include_archived: Annotated[bool, Query()] = False,
) -> dict[str, Any]:
    """The organisation's projects, newest first."""
    place = wanted_page("project", after, limit)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = organizations.list_projects(session, place, archived=include_archived)
    return page([project_object(project) for project in listed], has_more=has_more)


@router.post("", dependencies=[needs("organization:write")])
def create_project(caller: CallerDep, context: ContextDep, request: ProjectRequest) -> dict[str, Any]:
    """Make a project. Admins and owners of the organisation have all rights in it at once."""
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.create_project(session, caller.org_id, request.name)
        session.refresh(project)
        audit.record(session, caller, "project.created", public_id("project", project.id), after={"name": project.name})
    return project_object(project)


@router.get("/{project_id}", dependencies=[needs_in_project("members:read")])
def retrieve_project(caller: CallerDep, context: ContextDep, project_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return project_object(organizations.get_project(session, parse_id("project", project_id)))


@router.post("/{project_id}/archive", dependencies=[needs("organization:write")])
def archive_project(caller: CallerDep, context: ContextDep, project_id: str) -> dict[str, Any]:
    """Refuse all keys of a project from now on. What it owns stays; no other project gets its name."""
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.get_project(session, parse_id("project", project_id))
        organizations.archive_project(session, project)
        audit.record(session, caller, "project.archived", project_id, before={"name": project.name})
        return project_object(project)


@router.get("/{project_id}/users", dependencies=[needs_in_project("members:read")])
def list_members(
    caller: CallerDep, context: ContextDep, project_id: str, after: str | None = None, limit: PageLimit = 20
) -> dict[str, Any]:
    """Who was given a role in the project. Roles in the organisation hold here as well, and are not listed."""
    place = wanted_page("user", after, limit)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = members.list_members(session, parse_id("project", project_id), place)
    return page([member_object(user, member) for user, member in listed], has_more=has_more)


@router.post("/{project_id}/users", dependencies=[needs_in_project("members:write")])
def add_member(caller: CallerDep, context: ContextDep, project_id: str, request: MemberRequest) -> dict[str, Any]:
    """Give somebody of the organisation a role in the project."""
    role = members.read_project_role(request.role)
    user_id = None if request.user_id is None else parse_id("user", request.user_id)
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.get_project(session, parse_id("project", project_id))
        user = members.find_person(session, user_id=user_id, email=request.email)
        return member_object(user, members.give_project_role(session, caller, project, user, role))


@router.get("/{project_id}/users/{user_id}", dependencies=[needs_in_project("members:read")])
def retrieve_member(caller: CallerDep, context: ContextDep, project_id: str, user_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        user = members.get_user(session, parse_id("user", user_id))
        return member_object(user, members.get_member(session, parse_id("project", project_id), user))


@router.post("/{project_id}/users/{user_id}", dependencies=[needs_in_project("members:write")])
def update_member(
    caller: CallerDep, context: ContextDep, project_id: str, user_id: str, request: RoleRequest
) -> dict[str, Any]:
    role = members.read_project_role(request.role)
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.get_project(session, parse_id("project", project_id))
        user = members.get_user(session, parse_id("user", user_id))
        members.get_member(session, project.id, user)
        return member_object(user, members.give_project_role(session, caller, project, user, role))


@router.delete("/{project_id}/users/{user_id}", dependencies=[needs_in_project("members:write")])
def remove_member(caller: CallerDep, context: ContextDep, project_id: str, user_id: str) -> dict[str, Any]:
    """Take back the role that somebody was given in the project. Their role in the organisation stays."""
    with tenant_session(context.engine, caller.org_id) as session:
        project = organizations.get_project(session, parse_id("project", project_id))
        members.take_project_role(session, caller, project, members.get_user(session, parse_id("user", user_id)))
    return {"id": user_id, "object": "organization.project.user.deleted", "deleted": True}


@router.get("/{project_id}/rate_limits", dependencies=[needs_in_project("members:read")])
def list_rate_limits(
    caller: CallerDep, context: ContextDep, project_id: str, after: str | None = None, limit: PageLimit = 20
) -> dict[str, Any]:
    """The one limit of requests, which the projects of an organisation share. An operator sets it."""
    del project_id, after, limit
    with tenant_session(context.engine, caller.org_id) as session:
        most = quotas.limits_of(session, caller.org_id).requests_per_minute
    entry = {
        "id": "rl-requests",
        "object": "project.rate_limit",
        "model": "*",
        "max_requests_per_1_minute": most,
        "max_tokens_per_1_minute": None,
    }
    return page([entry], has_more=False)
