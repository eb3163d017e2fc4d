"""Stored completions, what their project says of them, and the datasets that are made of them."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub import states
from zhub.models.base import Base, TenantOwned, one_of, tenant_fk


class CompletionSettings(TenantOwned, Base):
    """Whether a project stores completions, and how. A project without a row never stored any.

    ``changes`` and ``stored_bytes`` are counters, so that neither a quota nor a schedule counts rows.
    """

    __tablename__ = "completion_settings"
    project_id: Mapped[uuid.UUID]
    enabled: Mapped[bool]
    kept_days: Mapped[int]
    redactors: Mapped[list[str]] = mapped_column(JSONB)
    cleared_at: Mapped[datetime | None]
    """What was stored until then is deleted."""
    changes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """How often a completion was stored or rated."""
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Of the completions that no sweep has removed yet."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id"),
        tenant_fk("project_id", "projects"),
        CheckConstraint("kept_days > 0", name="kept_days"),
    )


class StoredCompletion(TenantOwned, Base):
    """A request for chat with its answers, both after redaction. ``deleted_at`` hides it; the sweep removes the row."""

    __tablename__ = "stored_completions"
    project_id: Mapped[uuid.UUID]
    model: Mapped[str]
    """As it was asked for."""
    version_id: Mapped[uuid.UUID | None]
    """The expert version that answered, where it was one alone."""
    request: Mapped[dict[str, Any]]
    answer: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]]
    """The dialect's ``metadata``."""
    size_bytes: Mapped[int]
    change: Mapped[int] = mapped_column(BigInteger)
    """``changes`` of its project when it was stored or last rated."""
    rating: Mapped[float | None]
    """The mean score of the feedback on its best-rated choice."""
    rated_choice: Mapped[int | None]
    """The best-rated one, by its index."""
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("version_id", "expert_versions"),
        CheckConstraint("(rating IS NULL) = (rated_choice IS NULL)", name="rating"),
        Index("ix_stored_completions_project", "project_id", "id"),
        Index("ix_stored_completions_age", "project_id", "created_at"),
        Index("ix_stored_completions_change", "project_id", "change"),
        Index("ix_stored_completions_version", "version_id"),
        Index("ix_stored_completions_deleted", "project_id", postgresql_where=text("deleted_at IS NOT NULL")),
    )


class CompletionDataset(TenantOwned, Base):
    """A version of a dataset that is made of stored completions: asked for, and then written by a scheduler."""

    __tablename__ = "completion_datasets"
    project_id: Mapped[uuid.UUID]
    dataset: Mapped[str]
    """The dataset's name."""
    where: Mapped[str]
    """Which completions, as a person wrote it."""
    method: Mapped[str]
    """What will train on it: its rows have the form of that."""
    max_rows: Mapped[int]
    status: Mapped[str] = mapped_column(default="queued", server_default="queued")
    error: Mapped[str | None]
    claim: Mapped[uuid.UUID | None]
    """Of the scheduler that writes it, until ``claimed_until``."""
    claimed_until: Mapped[datetime | None]
    provenance: Mapped[dict[str, Any] | None]
    """What it came to: see ``zhub.completions.provenance``."""
    version_id: Mapped[uuid.UUID | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("version_id", "dataset_versions"),
        one_of("status", states.COMPLETION_DATASET_STATUSES),
        Index("ix_completion_datasets_project", "project_id", "id"),
        Index("ix_completion_datasets_queued", "id", postgresql_where=text("status = 'queued'")),
        Index("ix_completion_datasets_version", "version_id"),
    )
