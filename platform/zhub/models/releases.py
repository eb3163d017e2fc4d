"""Releases: a strategy and the expert versions that it chooses among or mixes, promoted as one."""

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, one_of, tenant_fk

STRATEGIES = ("centroid", "prompt", "mixture")


class Release(TenantOwned, Base):
    """A named line of release versions; ``last_version`` keeps their numbers gapless.

    Its name is that of no expert of the project, which ``registry.namespace`` sees to.
    """

    __tablename__ = "releases"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    last_version: Mapped[int] = mapped_column(default=0)
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "name"),
        tenant_fk("project_id", "projects"),
    )


class ReleaseVersion(TenantOwned, Base):
    """A version of a release: it never changes, and ``digest`` is that of all that decides how it answers."""

    __tablename__ = "release_versions"
    release_id: Mapped[uuid.UUID]
    base_model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("base_models.id"))
    version: Mapped[int]
    strategy: Mapped[str]
    digest: Mapped[str]
    description: Mapped[str | None]
    by: Mapped[str]
    """The id of the key that made it."""
    deleted_at: Mapped[datetime | None]
    """The row stays, so that its number is never given again and the moves of aliases keep their names."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("release_id", "version"),
        tenant_fk("release_id", "releases"),
        one_of("strategy", STRATEGIES),
    )


class ReleaseExpert(TenantOwned, Base):
    """An expert version that a release version pins, with its weight and the description that routing goes by."""

    __tablename__ = "release_experts"
    release_version_id: Mapped[uuid.UUID]
    position: Mapped[int]
    version_id: Mapped[uuid.UUID]
    weight: Mapped[float]
    description: Mapped[str]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("release_version_id", "position"),
        tenant_fk("release_version_id", "release_versions"),
        tenant_fk("version_id", "expert_versions"),
        Index("ix_release_experts_version", "version_id"),
    )
