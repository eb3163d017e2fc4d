"""What the administration's objects look like: as in the OpenAI dialect, with what it lacks beside."""

import uuid
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.ids import public_id
from zhub.models import ApiKey, Invitation, Organization, Project, ProjectMember, User
from zhub.tenancy import managed_keys
from zhub.tenancy.keys import role_in

MAX_EXPIRY_S = 10 * 365 * 86_400

KeyName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Lasts = Annotated[int | None, Field(ge=1, le=MAX_EXPIRY_S, description="Seconds from now; null: it does not expire.")]


def span(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def organization_object(organization: Organization) -> dict[str, Any]:
    return {
        "id": public_id("organization", organization.id),
        "object": "platform.organization",
        "name": organization.name,
        "created_at": seconds(organization.created_at),
        "status": "active" if organization.suspended_at is None else "suspended",
        "suspended_at": seconds(organization.suspended_at),
    }


def project_object(project: Project) -> dict[str, Any]:
    return {
        "id": public_id("project", project.id),
        "object": "organization.project",
        "name": project.name,
        "created_at": seconds(project.created_at),
        "archived_at": seconds(project.archived_at),
        "status": "active" if project.archived_at is None else "archived",
    }


def user_object(user: User) -> dict[str, Any]:
    return {
        "id": public_id("user", user.id),
        "object": "organization.user",
        "name": user.name,
        "email": user.email,
        "role": user.role,
        "added_at": seconds(user.created_at),
    }


def member_object(user: User, member: ProjectMember) -> dict[str, Any]:
    return {
        "id": public_id("user", user.id),
        "object": "organization.project.user",
        "name": user.name,
        "email": user.email,
        "role": member.role,
        "added_at": seconds(member.created_at),
    }


def account_object(session: Session, account: User) -> dict[str, Any]:
    assert account.project_id is not None
    role = role_in(session, account.id, account.project_id)
    return {
        "id": public_id("service account", account.id),
        "object": "organization.project.service_account",
        "name": account.name,
        "role": "none" if role is None else role.word,
        "created_at": seconds(account.created_at),
    }


def invitation_object(row: Invitation, at: datetime) -> dict[str, Any]:
    status = "accepted" if row.accepted_at is not None else "expired" if row.expires_at <= at else "pending"
    return {
        "id": public_id("invitation", row.id),
        "object": "organization.invite",
        "email": row.email,
        "role": row.role,
        "projects": [
            {"id": public_id("project", uuid.UUID(given["project_id"])), "role": given["role"]}
            for given in row.projects
        ],
        "status": status,
        "invited_by": row.invited_by,
        "created_at": seconds(row.created_at),
        "expires_at": seconds(row.expires_at),
        "accepted_at": seconds(row.accepted_at),
    }


def key_object(session: Session, row: ApiKey) -> dict[str, Any]:
    """A key of a project or of the organisation, without its secret."""
    user = None if row.user_id is None else session.get(User, row.user_id)
    return {
        "id": public_id("API key", row.id),
        "object": "organization.admin_api_key" if row.project_id is None else "organization.project.api_key",
        "name": row.name,
        "redacted_value": managed_keys.redacted(row),
        "scopes": row.scopes,
        "created_at": seconds(row.created_at),
        "last_used_at": seconds(row.last_used_at),
        "expires_at": seconds(row.expires_at),
        "successor": None if row.successor_id is None else public_id("API key", row.successor_id),
        "owner": _owner(session, row, user),
        "owner_project_access": "active" if user is None or user.removed_at is None else "inactive",
    }


def _owner(session: Session, row: ApiKey, user: User | None) -> dict[str, Any]:
    if user is None:
        return {"type": "project" if row.project_id is not None else "organization"}
    role = role_in(session, user.id, row.project_id) if row.project_id is not None else None
    about = {
        "id": public_id("user" if user.kind == "person" else "service account", user.id),
        "name": user.name,
        "role": user.role if role is None else role.word,
        "created_at": seconds(user.created_at),
    }
    if user.kind == "service_account":
        return {"type": "service_account", "service_account": about}
    nested = {"user": about | {"email": user.email}}
    return {"type": "user"} | (nested if row.project_id is not None else about)


def project_names(session: Session) -> dict[uuid.UUID, str]:
    """The names of all projects of the organisation, archived ones included."""
    return {row.id: row.name for row in session.execute(select(Project.id, Project.name))}
