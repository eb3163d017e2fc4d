"""What an organisation has used: time of workers, tokens of models, and room in the store."""

import uuid
from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import BigInteger, Index, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, tenant_fk


class Usage(TenantOwned, Base):
    """What an organisation has used of a cluster: worker-seconds until ``at``, of which half is left a day later."""

    __tablename__ = "usages"
    cluster: Mapped[str]
    worker_seconds: Mapped[float]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "cluster"))


class MonthUsage(TenantOwned, Base):
    """What an organisation has used in a calendar month (UTC), in all clusters, by attempts that have ended."""

    __tablename__ = "month_usages"
    month: Mapped[date]
    worker_seconds: Mapped[float]
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "month"))


class WorkerUsage(TenantOwned, Base):
    """The time of workers that attempts which have ended took within a day (UTC), each in the days that it ran in.

    ``expert`` is ``<project>.<expert>`` and ``base_model`` a name, as they were then; empty where the job has none.
    """

    __tablename__ = "worker_usages"
    day: Mapped[date]
    project_id: Mapped[uuid.UUID]
    key_id: Mapped[uuid.UUID | None]
    """That asked for the job; None where a schedule or the platform did."""
    cluster: Mapped[str]
    kind: Mapped[str]
    expert: Mapped[str]
    base_model: Mapped[str]
    worker_seconds: Mapped[float]
    trained_tokens: Mapped[int] = mapped_column(BigInteger)
    """Of trainings that succeeded on this day."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        # The day first after the organisation: reports read a span of time.
        UniqueConstraint(
            "org_id", "day", "project_id", "key_id", "cluster", "kind", "expert", "base_model",
            name="uq_worker_usages_day", postgresql_nulls_not_distinct=True,
        ),
        tenant_fk("project_id", "projects"),
        tenant_fk("key_id", "api_keys"),
    )  # fmt: skip


class StoredUsage(TenantOwned, Base):
    """The bytes that a project has stored on a day (UTC), once for each hour, the last of which is ``sampled_at``.

    Those of private base models belong to no project.
    """

    __tablename__ = "stored_usages"
    day: Mapped[date]
    project_id: Mapped[uuid.UUID | None]
    byte_hours: Mapped[Decimal]
    sampled_at: Mapped[datetime]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint(
            "org_id", "day", "project_id", name="uq_stored_usages_day", postgresql_nulls_not_distinct=True
        ),
        tenant_fk("project_id", "projects"),
        Index("ix_stored_usages_sampled_at", "sampled_at"),
    )


class TokenUsage(TenantOwned, Base):
    """The tokens that models read and wrote for a key within an hour (UTC).

    ``experts`` are the versions that answered, by their names, joined by " + "; empty where the base alone did.
    """

    __tablename__ = "token_usages"
    project_id: Mapped[uuid.UUID]
    key_id: Mapped[uuid.UUID]
    hour: Mapped[datetime]
    base_model: Mapped[str]
    experts: Mapped[str]
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    """Of the prompts', those that had been read for an earlier request."""
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        # The hour first after the organisation: reports read a span of time.
        UniqueConstraint("org_id", "hour", "project_id", "key_id", "base_model", "experts"),
        tenant_fk("project_id", "projects"),
        tenant_fk("key_id", "api_keys"),
    )
