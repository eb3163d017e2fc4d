"""Where a project's events are sent, and what is on its way there."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub import states
from zhub.models.base import Base, TenantOwned, one_of, tenant_fk


class WebhookEndpoint(TenantOwned, Base):
    """An address that a project's events are sent to. Its signing secret is derived, and stored nowhere."""

    __tablename__ = "webhook_endpoints"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]] = mapped_column(JSONB)
    status: Mapped[str] = mapped_column(default="enabled")
    status_details: Mapped[str | None]
    """Why it is disabled."""
    rotation: Mapped[int] = mapped_column(default=0)
    """How often its secret was rotated; the secret is derived from it."""
    old_secret_until: Mapped[datetime | None]
    """Until when the secret before the last rotation signs as well."""
    last_success_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    """Until when its receiver asked to be left alone."""
    sending_until: Mapped[datetime | None]
    """Until when whoever sends to it now has it alone; None: nobody sends."""
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        one_of("status", states.WEBHOOK_ENDPOINT_STATUSES),
        Index("ix_webhook_endpoints_project", "org_id", "project_id"),
    )


class WebhookDelivery(TenantOwned, Base):
    """One event on its way to one endpoint: the outbox. Written with what it tells, in the same transaction."""

    __tablename__ = "webhook_deliveries"
    endpoint_id: Mapped[uuid.UUID]
    event_id: Mapped[uuid.UUID]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    next_try_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    """When it is due; in the near future while somebody sends it; None once it has ended."""
    tries_left: Mapped[int]
    delivered_at: Mapped[datetime | None]
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    """``{"at", "status_code", "error", "duration_s", "next_try_at"}`` of each, oldest first."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("endpoint_id", "event_id"),
        tenant_fk("endpoint_id", "webhook_endpoints"),
        Index(
            "ix_webhook_deliveries_due", "endpoint_id", "tries_left", "next_try_at", "event_id",
            postgresql_where=text("next_try_at IS NOT NULL"),
        ),
        Index("ix_webhook_deliveries_age", "created_at"),
    )  # fmt: skip
