"""Organisations, projects and keys, and what an organisation may use."""

import uuid
from datetime import datetime
from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint, Index, UniqueConstraint, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub.ids import new_id
from zhub.models.base import Base, TenantOwned, tenant_fk


class Organization(Base):
    """A tenant. Its own row is fenced like everything it owns, on ``id``."""

    __tablename__ = "organizations"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    suspended_at: Mapped[datetime | None]
    """Since when an operator lets none of its keys do anything."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Project(TenantOwned, Base):
    """Where a team's datasets, jobs and experts live."""

    __tablename__ = "projects"
    name: Mapped[str]
    archived_at: Mapped[datetime | None]
    """Since when its keys are refused. What it owns stays."""
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "name"))


class ApiKey(TenantOwned, Base):
    """A key: ``prefix`` finds the row, ``hash`` (HMAC-SHA-256) proves the secret, shown once."""

    __tablename__ = "api_keys"
    project_id: Mapped[uuid.UUID | None]
    """Where it works; None: an organisation's key, which reaches no project's rows."""
    user_id: Mapped[uuid.UUID | None]
    """Whose it is: it may do what its owner may at that moment. None: the project's, by its scopes alone."""
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    pepper: Mapped[str | None]
    """The fingerprint of the secret key that ``hash`` is keyed with; None in rows of earlier releases."""
    scopes: Mapped[list[str]] = mapped_column(JSONB)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    successor_id: Mapped[uuid.UUID | None]
    """The key that a rotation made in its place."""
    last_used_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("user_id", "users"),
        tenant_fk("successor_id", "api_keys"),
        Index("ix_api_keys_project", "project_id", "id"),
        Index("ix_api_keys_user", "user_id"),
        Index("ix_api_keys_successor", "successor_id"),
    )


class Quota(TenantOwned, Base):
    """What an organisation may use, where it is not the default: an equal share, and ``zhub.tenancy.quotas``."""

    __tablename__ = "quotas"
    weight: Mapped[float] = mapped_column(default=1.0, server_default="1")
    max_workers: Mapped[float | None]
    """That its jobs may hold in one cluster at a time."""
    max_queued: Mapped[int | None]
    """Jobs that may wait at a time."""
    nominal_workers: Mapped[float] = mapped_column(default=0.0, server_default="0")
    """Of each cluster, that it gets back from others as soon as it wants them."""
    monthly_worker_hours: Mapped[float | None]
    """That its jobs may use in a calendar month."""
    monthly_budget: Mapped[Decimal | None]
    """What a calendar month may cost, in the currency of the price list."""
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of its dataset files, private base models and stored completions."""
    requests_per_minute: Mapped[int | None]
    """That each process of the API answers."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id"),
        CheckConstraint("weight > 0", name="weight"),
    )
