"""Keys that organisations sign with, signatures of versions, and proofs of what was erased."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, UniqueConstraint, Uuid, func, text
from sqlalchemy.orm import Mapped, mapped_column

from zhub.ids import new_id
from zhub.models.base import Base, TenantOwned, tenant_fk


class SigningKey(TenantOwned, Base):
    """A key of an organisation. The private one is nowhere: it is derived from the platform's secret and ``rotation``.

    Once ``retired_at`` is set, it verifies what was published before, and nothing later.
    """

    __tablename__ = "signing_keys"
    rotation: Mapped[int]
    key_id: Mapped[str]
    public_key: Mapped[str]
    """The raw 32 bytes, in base64."""
    retired_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "rotation"))


class Attestation(TenantOwned, Base):
    """The signed statement of a version, which also lies in the store, under ``key``."""

    __tablename__ = "attestations"
    version_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    signing_key_id: Mapped[uuid.UUID]
    envelope: Mapped[dict[str, Any]]
    key: Mapped[str]
    sha256: Mapped[str]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("version_id", "expert_versions"),
        tenant_fk("signing_key_id", "signing_keys"),
    )


class Erasure(Base):
    """The removal of an organisation with all that it had: of the platform, and what stays of it.

    ``counts`` are rows by table, ``objects`` those in the store, ``digest`` is a SHA-256 over the keys of all of them.
    ``proof`` is the signed statement of this, once all of it is done.
    """

    __tablename__ = "erasures"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    erased_org_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    by: Mapped[str]
    reason: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=text("'{}'"))
    objects: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    digest: Mapped[str] = mapped_column(default="", server_default="")
    proof: Mapped[dict[str, Any] | None]
