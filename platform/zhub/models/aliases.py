"""Aliases of expert versions and of release versions, and every move of them."""

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base, TenantOwned, tenant_fk


class Alias(TenantOwned, Base):
    """A name, such as ``@prod``, for the version of an expert or of a release that it points to now.

    Every move has a row of its own. Of a release, ``canary_share`` of the requests get the version beside it.
    """

    __tablename__ = "aliases"
    expert_id: Mapped[uuid.UUID | None]
    release_id: Mapped[uuid.UUID | None]
    name: Mapped[str]
    version_id: Mapped[uuid.UUID | None]
    """Of an expert. None: it was removed."""
    release_version_id: Mapped[uuid.UUID | None]
    """Of a release. None: it was removed."""
    canary_version_id: Mapped[uuid.UUID | None]
    canary_share: Mapped[float | None]
    moved_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("expert_id", "name"),
        UniqueConstraint("release_id", "name"),
        tenant_fk("expert_id", "experts"),
        tenant_fk("release_id", "releases"),
        tenant_fk("version_id", "expert_versions"),
        tenant_fk("release_version_id", "release_versions"),
        tenant_fk("canary_version_id", "release_versions"),
        CheckConstraint("num_nonnulls(expert_id, release_id) = 1", name="one_owner"),
        CheckConstraint("version_id IS NULL OR expert_id IS NOT NULL", name="version_of_expert"),
        CheckConstraint("release_version_id IS NULL OR release_id IS NOT NULL", name="version_of_release"),
        CheckConstraint("(canary_version_id IS NULL) = (canary_share IS NULL)", name="canary"),
        CheckConstraint("canary_version_id IS NULL OR release_version_id IS NOT NULL", name="canary_beside"),
        CheckConstraint("canary_share > 0 AND canary_share < 1", name="canary_share"),
        Index("ix_aliases_version", "version_id"),
        Index("ix_aliases_release_version", "release_version_id"),
        Index("ix_aliases_canary", "canary_version_id"),
    )

    @property
    def target_id(self) -> uuid.UUID | None:
        """The version that it points to, of whichever kind. None: it was removed."""
        return self.version_id or self.release_version_id


class AliasProtection(TenantOwned, Base):
    """In a project, aliases of this name move only by a request that somebody else approves."""

    __tablename__ = "alias_protections"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    by: Mapped[str]
    request_hours: Mapped[int] = mapped_column(default=168, server_default="168")
    """How long a request waits."""
    ended_at: Mapped[datetime | None]
    """Since when they move at once again."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("project_id", "name"),
        tenant_fk("project_id", "projects"),
        CheckConstraint("request_hours > 0", name="request_hours"),
    )


class AliasRequest(TenantOwned, Base):
    """A move of a protected alias that waits for the approval of somebody other than ``person``.

    It is open while ``decision`` is null and ``expires_at`` has not come. The alias moves only from ``expected_*``,
    which it pointed to when this was asked for.
    """

    __tablename__ = "alias_requests"
    project_id: Mapped[uuid.UUID]
    expert_id: Mapped[uuid.UUID | None]
    release_id: Mapped[uuid.UUID | None]
    alias: Mapped[str]
    version_id: Mapped[uuid.UUID | None]
    release_version_id: Mapped[uuid.UUID | None]
    expected_version_id: Mapped[uuid.UUID | None]
    expected_release_version_id: Mapped[uuid.UUID | None]
    share: Mapped[float | None]
    """Of a release: which share of the alias's requests the version shall get, beside the one that it points to."""
    promotion_id: Mapped[uuid.UUID | None]
    """The gate that the version passed."""
    by: Mapped[str]
    """The id of a key or of a promotion."""
    person: Mapped[str]
    """Who asked, as ``tenancy.persons`` names people: who approves must be another."""
    reason: Mapped[str | None]
    expires_at: Mapped[datetime]
    decision: Mapped[str | None]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None]
    decided_because: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("expert_id", "experts"),
        tenant_fk("release_id", "releases"),
        tenant_fk("version_id", "expert_versions"),
        tenant_fk("release_version_id", "release_versions"),
        tenant_fk("expected_version_id", "expert_versions"),
        tenant_fk("expected_release_version_id", "release_versions"),
        tenant_fk("promotion_id", "promotions"),
        CheckConstraint("num_nonnulls(expert_id, release_id) = 1", name="one_owner"),
        CheckConstraint("num_nonnulls(version_id, release_version_id) = 1", name="one_version"),
        CheckConstraint("decision IN ('approved', 'rejected', 'withdrawn')", name="decision"),
        CheckConstraint("(decision IS NULL) = (decided_at IS NULL)", name="decided"),
        Index("ix_alias_requests_project", "org_id", "project_id", "id"),
        Index("ix_alias_requests_promotion", "promotion_id"),
    )

    @property
    def target_id(self) -> uuid.UUID | None:
        """The version that the alias shall point to, of whichever kind."""
        return self.version_id or self.release_version_id

    @property
    def expected_id(self) -> uuid.UUID | None:
        return self.expected_version_id or self.expected_release_version_id


class AliasMove(TenantOwned, Base):
    """One move of an alias, append-only. The first has no version before it, a removal none after it.

    ``canary_*`` are what the alias had after it: where a canary begins or ends, it may move from a version to itself.
    """

    __tablename__ = "alias_moves"
    alias_id: Mapped[uuid.UUID]
    position: Mapped[int] = mapped_column(BigInteger, Identity())
    """Given under the lock on the alias, so the moves of one alias are in order."""
    from_version_id: Mapped[uuid.UUID | None]
    to_version_id: Mapped[uuid.UUID | None]
    from_release_version_id: Mapped[uuid.UUID | None]
    to_release_version_id: Mapped[uuid.UUID | None]
    canary_version_id: Mapped[uuid.UUID | None]
    canary_share: Mapped[float | None]
    by: Mapped[str]
    """Who moved it: the id of a key or of a promotion."""
    reason: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("alias_id", "aliases"),
        tenant_fk("from_version_id", "expert_versions"),
        tenant_fk("to_version_id", "expert_versions"),
        tenant_fk("from_release_version_id", "release_versions"),
        tenant_fk("to_release_version_id", "release_versions"),
        tenant_fk("canary_version_id", "release_versions"),
        Index("ix_alias_moves_alias", "alias_id", "position"),
    )

    @property
    def from_id(self) -> uuid.UUID | None:
        return self.from_version_id or self.from_release_version_id

    @property
    def to_id(self) -> uuid.UUID | None:
        return self.to_version_id or self.to_release_version_id
