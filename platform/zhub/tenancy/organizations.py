"""Organisations and their projects."""

import uuid

from sqlalchemy.orm import Session

from zhub.models import Organization, Project
from zhub.tenancy.names import check_name


def create_organization(session: Session, name: str) -> Organization:
    organization = Organization(name=check_name(name, "organization"))
    session.add(organization)
    session.flush()
    return organization


def create_project(session: Session, org_id: uuid.UUID, name: str) -> Project:
    project = Project(org_id=org_id, name=check_name(name, "project"))
    session.add(project)
    session.flush()
    return project
