"""Organisations and their projects."""

import uuid

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from zhub.database.pages import Page, read_page
from zhub.errors import ConflictError, NotFoundError
from zhub.ids import new_id, public_id
from zhub.models import Organization, Project
from zhub.tenancy.names import check_name


def create_organization(session: Session, name: str, *, org_id: uuid.UUID | None = None) -> Organization:
    """Raises ConflictError: the name is taken."""
    organization = Organization(id=org_id or new_id(), name=check_name(name, "organization", param="name"))
    _add(session, organization, f"There is an organisation '{name}' already. Choose another name.")
    return organization


def list_organizations(session: Session, page: Page) -> tuple[list[Organization], bool]:
    """All organisations that the session sees."""
    return read_page(session, select(Organization), Organization.id, page)


def get_organization(session: Session, org_id: uuid.UUID) -> Organization:
    """Raises NotFoundError."""
    organization = session.get(Organization, org_id)
    if organization is None:
        raise NotFoundError("organization", public_id("organization", org_id))
    return organization


def suspend(session: Session, organization: Organization) -> None:
    """Refuse all its keys from now on. Its jobs, and what it owns, stay as they are."""
    if organization.suspended_at is None:
        organization.suspended_at = func.now()
        session.flush()
        session.refresh(organization)


def resume(session: Session, organization: Organization) -> None:
    organization.suspended_at = None
    session.flush()


def create_project(session: Session, org_id: uuid.UUID, name: str) -> Project:
    """Raises ConflictError: the organisation has a project of this name, archived ones included."""
    project = Project(org_id=org_id, name=check_name(name, "project", param="name"))
    _add(session, project, f"There is a project '{name}' already. Choose another name.")
    return project


def list_projects(session: Session, page: Page, *, archived: bool = False) -> tuple[list[Project], bool]:
    """The organisation's projects; ``archived``: those as well."""
    rows = select(Project)
    return read_page(session, rows if archived else rows.where(Project.archived_at.is_(None)), Project.id, page)


def get_project(session: Session, project_id: uuid.UUID) -> Project:
    """Raises NotFoundError."""
    project = session.get(Project, project_id)
    if project is None:
        raise NotFoundError("project", public_id("project", project_id))
    return project


def archive_project(session: Session, project: Project) -> None:
    """Refuse all its keys from now on. What it owns stays, and its name is not given again."""
    if project.archived_at is None:
        project.archived_at = func.now()
        session.flush()
        session.refresh(project)


def _add(session: Session, row: Organization | Project, taken: str) -> None:
    try:
        with session.begin_nested():
            session.add(row)
            session.flush()
    except IntegrityError as exc:
        raise ConflictError(taken) from exc
