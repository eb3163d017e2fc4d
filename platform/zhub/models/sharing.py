"""What organisations share with each other: grants of experts, and how much these are used."""

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, one_of, tenant_fk

PERMISSIONS = ("view", "use", "fork", "manage")
"""Of a grant, each with those before it."""


class ExpertGrant(TenantOwned, Base):
    """What another organisation, or one project of it, may do with an expert; or its request for that.

    ``subject`` and ``grantee`` are the names of the day, for lists: of the expert or the version, and of who gets it.
    A grant with a ``version_id`` is of that version alone.
    """

    __tablename__ = "expert_grants"
    expert_id: Mapped[uuid.UUID]
    version_id: Mapped[uuid.UUID | None]
    grantee_org_id: Mapped[uuid.UUID] = mapped_column(Uuid, ForeignKey("organizations.id"))
    grantee_project_id: Mapped[uuid.UUID | None]
    subject: Mapped[str]
    grantee: Mapped[str]
    permission: Mapped[str]
    status: Mapped[str]
    """``requested``, ``active``, ``denied``, ``revoked`` by its owner, or ``withdrawn`` by who had it. One that has
    expired stays ``active``, and gives nothing."""
    message: Mapped[str | None]
    """Why it is asked for."""
    by: Mapped[str]
    """Who made it or asked for it, and ``decided_by`` who approved, denied, revoked or withdrew it: ids of keys."""
    decided_by: Mapped[str | None]
    decided_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("expert_id", "experts"),
        tenant_fk("version_id", "expert_versions"),
        one_of("permission", PERMISSIONS),
        one_of("status", ("requested", "active", "denied", "revoked", "withdrawn")),
        CheckConstraint("grantee_org_id <> org_id", name="other"),
        Index(
            "uq_expert_grants_open", "expert_id", "grantee_org_id", "grantee_project_id", "status",
            unique=True, postgresql_nulls_not_distinct=True, postgresql_where=text("status IN ('requested', 'active')"),
        ),
        Index("ix_expert_grants_given", "org_id", "id"),
        Index("ix_expert_grants_received", "grantee_org_id", "id"),
        Index("ix_expert_grants_version", "version_id"),
    )  # fmt: skip


class SharedUsage(TenantOwned, Base):
    """The tokens that another organisation's requests cost a version of this one within an hour (UTC)."""

    __tablename__ = "shared_usages"
    version_id: Mapped[uuid.UUID]
    user_org_id: Mapped[uuid.UUID] = mapped_column(Uuid, ForeignKey("organizations.id"))
    user: Mapped[str]
    """The name of that organisation."""
    hour: Mapped[datetime]
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "hour", "version_id", "user_org_id"),
        tenant_fk("version_id", "expert_versions"),
    )
