"""The first organisation, project and API key of a new database: what nobody with a key could ask the API for."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.models import ApiKey, Organization, Project
from zhub.tenancy import keys, organizations
from zhub.tenancy.scopes import SCOPES, TENANT_SCOPES


def ensure_project(session: Session, organization: str, project: str) -> Project:
    """The project of these names, made if it is new. Needs a session that sees every tenant; the caller commits."""
    owner = session.scalar(select(Organization).where(Organization.name == organization))
    if owner is None:
        owner = organizations.create_organization(session, organization)
    found = session.scalar(select(Project).where(Project.org_id == owner.id, Project.name == project))
    return found or organizations.create_project(session, owner.id, project)


def has_keys(session: Session, project: Project) -> bool:
    """Whether a key of this project was ever made, revoked ones included."""
    return session.scalar(select(ApiKey.id).where(ApiKey.project_id == project.id).limit(1)) is not None


def create_full_key(session: Session, project: Project, name: str, *, operator: bool, secret_key: str) -> str:
    """Make a key that may do everything in its project, and return it; it is never to be had again.

    An ``operator``'s key may also add base models for every organisation, and make and suspend organisations.
    """
    scopes = SCOPES if operator else TENANT_SCOPES
    _row, key = keys.create_api_key(session, project, name, scopes=scopes, secret_key=secret_key)
    return key
