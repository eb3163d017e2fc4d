"""Expert versions in the forms that other software reads."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, tenant_fk


class ExpertExport(TenantOwned, Base):
    """One export of a version. Its status is that of its job; the columns below ``rank`` are null until that has
    succeeded."""

    __tablename__ = "expert_exports"
    project_id: Mapped[uuid.UUID]
    version_id: Mapped[uuid.UUID]
    job_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    format: Mapped[str]
    rank: Mapped[int | None]
    """Of a LoRA, as it was asked for."""
    key_prefix: Mapped[str | None]
    files: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    """``{"name", "size_bytes", "sha256"}`` of each, its name below ``key_prefix``."""
    facts: Mapped[dict[str, Any] | None]
    """What was measured: errors, ranks."""
    swept_at: Mapped[datetime | None]
    """When its objects were removed."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("version_id", "expert_versions"),
        tenant_fk("job_id", "jobs"),
        Index("ix_expert_exports_version", "version_id", "id"),
        Index("ix_expert_exports_age", "created_at", postgresql_where=text("swept_at IS NULL")),
    )
