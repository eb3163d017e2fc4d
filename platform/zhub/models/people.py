"""Who is in an organisation: people and service accounts, their roles in projects, and invitations."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, one_of, tenant_fk
from zhub.states import PROJECT_ROLES, ROLES, USER_KINDS


class User(TenantOwned, Base):
    """A person as one organisation knows them, or a service account of one of its projects."""

    __tablename__ = "users"
    kind: Mapped[str]
    name: Mapped[str]
    email: Mapped[str | None]
    """Of a person, in small letters."""
    role: Mapped[str]
    """In the organisation, and so in all its projects."""
    project_id: Mapped[uuid.UUID | None]
    """Of a service account: the project it works in."""
    issuer: Mapped[str | None]
    subject: Mapped[str | None]
    """Who an OpenID provider says it is; both or none."""
    removed_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        one_of("kind", USER_KINDS),
        one_of("role", ROLES),
        CheckConstraint("(kind = 'person') = (email IS NOT NULL)", name="person_has_email"),
        CheckConstraint("(kind = 'service_account') = (project_id IS NOT NULL)", name="service_account_has_project"),
        CheckConstraint("(issuer IS NULL) = (subject IS NULL)", name="identity"),
        Index("uq_users_email", "org_id", "email", unique=True, postgresql_where=text("removed_at IS NULL")),
        Index(
            "uq_users_identity",
            "issuer",
            "subject",
            "org_id",
            unique=True,
            postgresql_where=text("removed_at IS NULL"),
        ),
        Index("ix_users_project", "project_id", "id"),
    )


class ProjectMember(TenantOwned, Base):
    """The role of a user in one project, until it is taken back."""

    __tablename__ = "project_members"
    project_id: Mapped[uuid.UUID]
    user_id: Mapped[uuid.UUID]
    role: Mapped[str]
    removed_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "user_id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("user_id", "users"),
        one_of("role", PROJECT_ROLES),
        Index("ix_project_members_user", "user_id"),
    )


class Invitation(TenantOwned, Base):
    """An invitation of an e-mail address; whoever shows its token, or proves to have the address, becomes a user."""

    __tablename__ = "invitations"
    email: Mapped[str]
    role: Mapped[str]
    projects: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    """Roles in projects: ``project_id`` and ``role``."""
    token_hash: Mapped[str] = mapped_column(unique=True)
    """SHA-256 of the token, which is shown once."""
    invited_by: Mapped[str]
    expires_at: Mapped[datetime]
    accepted_at: Mapped[datetime | None]
    user_id: Mapped[uuid.UUID | None]
    """Who accepted it."""
    revoked_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("user_id", "users"),
        one_of("role", ROLES),
        Index("ix_invitations_email", "email"),
        Index("ix_invitations_user", "user_id"),
    )
