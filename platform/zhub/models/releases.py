"""Releases: a strategy and the expert versions that it chooses among or mixes, promoted as one; and what a classifier
learned to tell apart."""

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, one_of, tenant_fk

STRATEGIES = ("centroid", "prompt", "classifier", "mixture")


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
    classifier_version_id: Mapped[uuid.UUID | None]
    """The expert version that the strategy ``classifier`` asks."""
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
        tenant_fk("classifier_version_id", "expert_versions"),
        one_of("strategy", STRATEGIES),
        CheckConstraint("strategy <> 'classifier' OR classifier_version_id IS NOT NULL", name="has_classifier"),
        Index("ix_release_versions_classifier", "classifier_version_id"),
    )


class ShadowTrial(TenantOwned, Base):
    """A version that answers a ``share`` of an alias's requests beside the one that it points to, and what came of it.

    It ends with the next move of the alias. Counts are of requests: those that the shadow ``answered``, ``failed`` at,
    and was ``left_out`` of because it answered others; of the first, those with the ``same_experts``, and of the
    ``comparable`` ones, which are not drawn at random, those that it answered ``alike``.
    """

    __tablename__ = "shadow_trials"
    alias_id: Mapped[uuid.UUID]
    live_version_id: Mapped[uuid.UUID]
    shadow_version_id: Mapped[uuid.UUID]
    share: Mapped[float]
    by: Mapped[str]
    """The id of the key that began it."""
    ended_at: Mapped[datetime | None]
    answered: Mapped[int] = mapped_column(default=0, server_default="0")
    failed: Mapped[int] = mapped_column(default=0, server_default="0")
    left_out: Mapped[int] = mapped_column(default=0, server_default="0")
    same_experts: Mapped[int] = mapped_column(default=0, server_default="0")
    comparable: Mapped[int] = mapped_column(default=0, server_default="0")
    alike: Mapped[int] = mapped_column(default=0, server_default="0")
    live_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    shadow_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    live_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    shadow_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("alias_id", "aliases"),
        tenant_fk("live_version_id", "release_versions"),
        tenant_fk("shadow_version_id", "release_versions"),
        CheckConstraint("share > 0 AND share <= 1", name="share"),
        Index("uq_shadow_trials_running", "alias_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("ix_shadow_trials_alias", "alias_id", "id"),
        Index("ix_shadow_trials_shadow", "shadow_version_id"),
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


class ClassifiedExpert(TenantOwned, Base):
    """A label of a dataset that a classifier is trained on, and the expert version whose prompts have it there."""

    __tablename__ = "classified_experts"
    dataset_version_id: Mapped[uuid.UUID]
    position: Mapped[int]
    """In the order of the answers that stand for the labels."""
    label: Mapped[str]
    version_id: Mapped[uuid.UUID]
    rows: Mapped[int]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("dataset_version_id", "position"),
        tenant_fk("dataset_version_id", "dataset_versions"),
        tenant_fk("version_id", "expert_versions"),
        Index("ix_classified_experts_version", "version_id"),
    )
