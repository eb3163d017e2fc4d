"""Organisations, projects and keys, and what an organisation may use."""

import uuid
from datetime import datetime
from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint, UniqueConstraint, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub.ids import new_id
from zhub.models.base import Base, TenantOwned, tenant_fk


class Organization(Base):
    """A tenant. Its own row is fenced like everything it owns, on ``id``."""

    __tablename__ = "organizations"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Project(TenantOwned, Base):
    """Where a team's datasets, jobs and experts live."""

    __tablename__ = "projects"
    name: Mapped[str]
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "name"))


class ApiKey(TenantOwned, Base):
    """A key of one project: ``prefix`` finds the row, ``hash`` (HMAC-SHA-256) proves the secret, shown once."""

    __tablename__ = "api_keys"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSONB)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("org_id", "id"), tenant_fk("project_id", "projects"))


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
