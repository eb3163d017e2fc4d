"""What an organisation has used: time of workers, and tokens of models."""

import uuid
from datetime import date, datetime

from sqlalchemy import BigInteger, UniqueConstraint, func
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
