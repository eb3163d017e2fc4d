"""What the catalogue is searched by, and the cards of experts. Triggers of the database keep entries and metrics."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, tenant_fk


class CatalogueEntry(TenantOwned, Base):
    """A version as it is found. Nothing writes it but triggers, from the rows of what is said here again.

    ``audience`` is the project, or the organisation, that sees it by itself; None: nobody, it was deleted. ``listed``:
    every organisation finds it. ``terms`` are ``base:tiny``, ``tag:team``, ``tag:team=north``, ``alias:prod`` and the
    like; ``document`` has the words of names, descriptions, tags and the card. ``created_at`` is the version's.
    """

    __tablename__ = "catalogue_entries"
    project_id: Mapped[uuid.UUID]
    expert_id: Mapped[uuid.UUID]
    version_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    audience: Mapped[uuid.UUID | None]
    listed: Mapped[bool]
    archived: Mapped[bool]
    """The version or its expert."""
    terms: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    document: Mapped[str] = mapped_column(TSVECTOR())
    updated_at: Mapped[datetime]
    """When something about it last changed."""
    used_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Read and written by it, ever."""
    feedback_count: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    feedback_sum: Mapped[float] = mapped_column(default=0.0, server_default="0")
    feedback_mean: Mapped[float] = mapped_column(default=-float("inf"), server_default=text("'-Infinity'"))
    """Minus infinity where there is none."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("expert_id", "experts"),
        tenant_fk("version_id", "expert_versions"),
        Index("ix_catalogue_entries_terms", "terms", postgresql_using="gin"),
        Index("ix_catalogue_entries_document", "document", postgresql_using="gin"),
        Index("ix_catalogue_entries_expert", "expert_id", "created_at", "version_id"),
        *(
            Index(f"ix_catalogue_entries_{sort}", "audience", sort, "version_id")
            for sort in ("created_at", "used_tokens", "feedback_mean")
        ),
        *(
            Index(f"ix_catalogue_entries_listed_{sort}", sort, "version_id", postgresql_where=text("listed"))
            for sort in ("created_at", "used_tokens", "feedback_mean")
        ),
    )


class VersionMetric(TenantOwned, Base):
    """One figure of a version on one suite; ``audience`` and ``listed`` as of its entry.

    The suites ``test`` and ``validation`` are the training's own held-out rows, ``general`` what it may have
    forgotten; any other is called as the file that somebody evaluated it on.
    """

    __tablename__ = "version_metrics"
    expert_id: Mapped[uuid.UUID]
    version_id: Mapped[uuid.UUID]
    audience: Mapped[uuid.UUID | None]
    listed: Mapped[bool]
    suite: Mapped[str]
    metric: Mapped[str]
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    n: Mapped[int | None] = mapped_column(BigInteger)
    """Rows."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("version_id", "suite", "metric"),
        tenant_fk("expert_id", "experts"),
        tenant_fk("version_id", "expert_versions"),
        Index("ix_version_metrics_best", "audience", "suite", "metric", "value", "version_id"),
        Index("ix_version_metrics_listed", "suite", "metric", "value", "version_id", postgresql_where=text("listed")),
        Index("ix_version_metrics_expert", "expert_id", "suite", "metric", "value", "version_id"),
    )


class CardRevision(TenantOwned, Base):
    """What people wrote of an expert: the text of its card and links, at one time. Append-only, numbered from 1."""

    __tablename__ = "card_revisions"
    expert_id: Mapped[uuid.UUID]
    revision: Mapped[int]
    text: Mapped[str]
    """Markdown, kept as it was written: whoever shows it as HTML escapes it."""
    links: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    by: Mapped[str]
    """The id of the key that wrote it."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("expert_id", "revision"),
        tenant_fk("expert_id", "experts"),
    )
