"""The audit log's table. The database lets nobody change or delete its rows."""

import uuid
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, tenant_fk


class AuditEvent(TenantOwned, Base):
    """One act. ``target`` is a public id or a name, of what may be gone by now."""

    __tablename__ = "audit_events"
    project_id: Mapped[uuid.UUID | None]
    action: Mapped[str]
    target: Mapped[str]
    actor: Mapped[str]
    """Who it was, for people: an address, a service account, a part of the platform."""
    key_id: Mapped[uuid.UUID | None]
    user_id: Mapped[uuid.UUID | None]
    address: Mapped[str | None]
    user_agent: Mapped[str | None]
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("key_id", "api_keys"),
        tenant_fk("user_id", "users"),
        Index("ix_audit_events_target", "org_id", "target", "id"),
        Index("ix_audit_events_action", "org_id", "action", "id"),
    )
