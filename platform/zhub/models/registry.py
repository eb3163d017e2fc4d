"""Base models, datasets, experts with their versions, and what was found out about these."""

import math
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from zhub import states
from zhub.ids import new_id
from zhub.models.base import Base, TenantOwned, one_of, tenant_fk

VISIBILITIES = ("private", "organization", "granted", "public")


class BaseModel(Base):
    """A frozen base model: of the platform, for every organisation, or ``private`` to the one that added it."""

    __tablename__ = "base_models"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    name: Mapped[str]
    owner_org_id: Mapped[uuid.UUID | None] = mapped_column(Uuid, ForeignKey("organizations.id"))
    """Who began it, and alone adds its files. None: added by a release that did not note it."""
    private: Mapped[bool] = mapped_column(Boolean, default=False, server_default=text("false"))
    """Whether only its owner sees and uses it."""
    status: Mapped[str] = mapped_column(default="uploading")
    error: Mapped[str | None]
    source: Mapped[dict[str, Any]]
    weights_fingerprint: Mapped[str | None]
    basis_fingerprint: Mapped[str | None]
    basis_key_prefix: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """Found at decomposition: architecture, parameters, how many are adapted, context length, limitations."""
    is_default: Mapped[bool] = mapped_column(Boolean, default=False)
    cluster: Mapped[str] = mapped_column(default="default", server_default="default")
    """Which workers decompose it."""
    rank: Mapped[int | None]
    """Of how many leading singular directions of each matrix its basis is; None: of all."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        one_of("status", states.BASE_MODEL_STATUSES),
        CheckConstraint("rank > 0", name="rank"),
        CheckConstraint("(status = 'ready') <= (basis_fingerprint IS NOT NULL)", name="ready_has_basis"),
        CheckConstraint("NOT private OR (owner_org_id IS NOT NULL AND NOT is_default)", name="private_has_owner"),
        Index("uq_base_models_default", "is_default", unique=True, postgresql_where=text("is_default")),
        Index("uq_base_models_name", "name", unique=True, postgresql_where=text("NOT private")),
        Index("uq_base_models_owner_name", "owner_org_id", "name", unique=True, postgresql_where=text("private")),
    )


class Dataset(TenantOwned, Base):
    """A named line of dataset versions; ``last_version`` is the counter that keeps their numbers gapless."""

    __tablename__ = "datasets"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    last_version: Mapped[int] = mapped_column(default=0)
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "name"),
        tenant_fk("project_id", "projects"),
    )


class DatasetVersion(TenantOwned, Base):
    """An uploaded file, immutable, named by its digest. The OpenAI dialect calls it a file."""

    __tablename__ = "dataset_versions"
    project_id: Mapped[uuid.UUID]
    dataset_id: Mapped[uuid.UUID]
    version: Mapped[int]
    filename: Mapped[str]
    purpose: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    key: Mapped[str]
    status: Mapped[str] = mapped_column(default="uploaded")
    status_details: Mapped[str | None]
    validation: Mapped[dict[str, Any] | None]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("dataset_id", "version"),
        tenant_fk("project_id", "projects"),
        tenant_fk("dataset_id", "datasets"),
        one_of("status", states.FILE_STATUSES),
    )


class TokenCount(TenantOwned, Base):
    """Which rows of a file have more tokens than the context of a base. Its status is that of its job.

    The columns below ``job_id`` are null until that has succeeded; ``context_length`` also for a base without a bound.
    """

    __tablename__ = "token_counts"
    dataset_version_id: Mapped[uuid.UUID]
    base_model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("base_models.id"))
    job_id: Mapped[uuid.UUID]
    context_length: Mapped[int | None]
    long_row_count: Mapped[int | None]
    long_rows: Mapped[list[list[int]] | None] = mapped_column(JSONB)
    """The first of them, each as ``[line, tokens]``."""
    tokenizer_warning: Mapped[str | None]
    """Where the base's tokenizer does not know the language of the rows: what that costs, for people."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("dataset_version_id", "base_model_id"),
        tenant_fk("dataset_version_id", "dataset_versions"),
        tenant_fk("job_id", "jobs"),
        Index("ix_token_counts_job", "job_id"),
    )


class Expert(TenantOwned, Base):
    """A named line of versions; ``last_version`` keeps their numbers gapless. Each version names its base model."""

    __tablename__ = "experts"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    last_version: Mapped[int] = mapped_column(default=0)
    feedback_count: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """How many pieces of feedback have come on its versions, those included that were deleted since."""
    former_names: Mapped[list[str]] = mapped_column(JSONB, default=list, server_default=text("'[]'"))
    """Names that it had before, oldest first: they still lead to it, and no other expert of the project gets one."""
    description: Mapped[str | None]
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=text("'{}'"))
    visibility: Mapped[str] = mapped_column(default="private", server_default="private")
    """Who finds it without a grant: its project, its organisation, or every organisation, which then also uses it
    (``public``) or asks for that (``granted``)."""
    archived_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """The row stays, and with it the counter: a training under the same name goes on from its last number."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "name"),
        tenant_fk("project_id", "projects"),
        one_of("visibility", VISIBILITIES),
        Index(
            "ix_experts_listed", "org_id", "project_id", postgresql_where=text("visibility IN ('granted', 'public')")
        ),
    )


class ExpertVersion(TenantOwned, Base):
    """A version: at most one for each job, and made under the fence that the job had then.

    What training made of it never changes, which a trigger sees to; ``description``, ``tags``, ``archived_at`` and its
    state are what people say of it.
    """

    __tablename__ = "expert_versions"
    expert_id: Mapped[uuid.UUID]
    base_model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("base_models.id"))
    version: Mapped[int]
    job_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str]
    manifest: Mapped[dict[str, Any]]
    key_prefix: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    score: Mapped[float] = mapped_column(default=-math.inf, server_default=text("'-Infinity'"))
    """The mean reward on the held-out test rows that the manifest has; minus infinity where it has none."""
    description: Mapped[str | None]
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=text("'{}'"))
    archived_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """The row stays, so that its number is never given again and what refers to it keeps its name."""
    swept_at: Mapped[datetime | None]
    """When the objects of a deleted version were removed."""
    lost_files: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))
    """Which of its files the object store was found to have lost."""
    deprecated_at: Mapped[datetime | None]
    yanked_at: Mapped[datetime | None]
    """Since then it answers nothing, and nothing begins from it."""
    successor_id: Mapped[uuid.UUID | None]
    """Of a deprecated or yanked version, the one to use."""
    state_reason: Mapped[str | None]
    """Why it was deprecated or yanked."""
    signed_at: Mapped[datetime | None]
    damage: Mapped[str | None]
    """What the last check of its files found wrong with them; None: nothing."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("expert_id", "version"),
        tenant_fk("expert_id", "experts"),
        tenant_fk("job_id", "jobs"),
        tenant_fk("successor_id", "expert_versions"),
        Index(
            "ix_expert_versions_unsigned",
            "id",
            postgresql_where=text("signed_at IS NULL AND swept_at IS NULL AND damage IS NULL"),
        ),
        Index(
            "ix_expert_versions_parent",
            "org_id",
            text("(manifest ->> 'parent_digest')"),
            postgresql_where=text("(manifest ->> 'parent_digest') IS NOT NULL"),
        ),
        Index(
            "ix_expert_versions_mixed",
            text("((manifest -> 'mixture'::text) -> 'experts'::text)"),
            postgresql_using="gin",
            postgresql_where=text("(manifest -> 'mixture') IS NOT NULL"),
        ),
        Index("ix_expert_versions_successor", "successor_id", postgresql_where=text("successor_id IS NOT NULL")),
        Index("ix_expert_versions_digest", "org_id", "digest"),
        Index("ix_expert_versions_age", "expert_id", "created_at", "version", "id"),
        Index("ix_expert_versions_score", "expert_id", "score", "version", "id"),
        Index(
            "ix_expert_versions_deleted",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL AND swept_at IS NULL"),
        ),
    )

    @property
    def state(self) -> states.VersionState:
        """How far it is in its life; one that was deprecated before it was yanked is yanked."""
        if self.deleted_at is not None:
            return "purged" if self.swept_at is not None else "deleted"
        if self.yanked_at is not None:
            return "yanked"
        return "deprecated" if self.deprecated_at is not None else "ready"


class ExpertChange(TenantOwned, Base):
    """One change of what people say of an expert, or of one version of it: append-only."""

    __tablename__ = "expert_changes"
    expert_id: Mapped[uuid.UUID]
    version_id: Mapped[uuid.UUID | None]
    by: Mapped[str]
    """The id of the key that changed it."""
    changes: Mapped[dict[str, Any]]
    """For each field that changed, ``{"from": …, "to": …}``."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("expert_id", "experts"),
        tenant_fk("version_id", "expert_versions"),
        Index("ix_expert_changes_expert", "expert_id", "id"),
    )


class Feedback(TenantOwned, Base):
    """What somebody said of one answer. ``deleted_at`` hides it; the sweep then removes the row.

    The answer is a version's, or one of a stored completion, with which the row is removed, or both.
    """

    __tablename__ = "feedback"
    project_id: Mapped[uuid.UUID]
    version_id: Mapped[uuid.UUID | None]
    completion_id: Mapped[uuid.UUID | None]
    choice: Mapped[int | None]
    """Which of the completion's choices, by its index."""
    messages: Mapped[list[dict[str, str]]] = mapped_column(JSONB)
    """The prompt, as rows of a dataset have it."""
    completion: Mapped[str]
    score: Mapped[float]
    """From -1, as bad as can be, to 1."""
    reference: Mapped[str | None]
    """The answer that would have been right."""
    comment: Mapped[str | None]
    request_hash: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "idempotency_key"),
        tenant_fk("project_id", "projects"),
        tenant_fk("version_id", "expert_versions"),
        tenant_fk("completion_id", "stored_completions"),
        CheckConstraint("score BETWEEN -1 AND 1", name="score"),
        CheckConstraint("version_id IS NOT NULL OR completion_id IS NOT NULL", name="sample"),
        CheckConstraint("(completion_id IS NULL) = (choice IS NULL)", name="choice"),
        Index("ix_feedback_completion", "completion_id"),
        Index("ix_feedback_project", "project_id", "id"),
        Index(
            "ix_feedback_version",
            "version_id",
            "id",
            postgresql_include=["score"],
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("ix_feedback_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )


class Checkpoint(TenantOwned, Base):
    """A point that a training job can go on from. ``deleted_at`` hides it; the sweep then removes objects and row."""

    __tablename__ = "checkpoints"
    job_id: Mapped[uuid.UUID]
    fence: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    key_prefix: Mapped[str]
    digest: Mapped[str]
    """SHA-256 of its ``manifest.json``."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    z: Mapped[dict[str, Any]]
    """``{"name", "size_bytes", "sha256"}`` of the file that serving reads."""
    metrics: Mapped[dict[str, Any]]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("job_id", "step"),
        tenant_fk("job_id", "jobs"),
        Index("ix_checkpoints_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )


class Evaluation(TenantOwned, Base):
    """One subject, a base or a version, measured on one suite: never twice. Its status is that of its job.

    What makes two suites equal is ``suite_digest``. A version is that of an expert or of a release; where both are null
    the base itself is the subject.
    """

    __tablename__ = "evaluations"
    project_id: Mapped[uuid.UUID]
    job_id: Mapped[uuid.UUID]
    base_model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("base_models.id"))
    version_id: Mapped[uuid.UUID | None]
    release_version_id: Mapped[uuid.UUID | None]
    suite_digest: Mapped[str]
    suite: Mapped[dict[str, Any]]
    results: Mapped[dict[str, Any] | None]
    rewards: Mapped[list[float] | None] = mapped_column(JSONB)
    """Of the greedy answer to each row, in the file's order: what paired comparisons are made of."""
    rows_key: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint(
            "project_id", "base_model_id", "version_id", "release_version_id", "suite_digest",
            name="uq_evaluations_subject_suite", postgresql_nulls_not_distinct=True,
        ),
        tenant_fk("project_id", "projects"),
        tenant_fk("job_id", "jobs"),
        tenant_fk("version_id", "expert_versions"),
        tenant_fk("release_version_id", "release_versions"),
        CheckConstraint("num_nonnulls(version_id, release_version_id) <= 1", name="one_version"),
        Index("ix_evaluations_job", "job_id"),
        Index("ix_evaluations_project", "org_id", "project_id", "id"),
    )  # fmt: skip


class Promotion(TenantOwned, Base):
    """A version that shall get an alias if it passes its gate. Its status is that of its job, of the kind ``gate``.

    It is of an expert, or of a release. Both are null until the training ``training_job_id`` has published.
    """

    __tablename__ = "promotions"
    project_id: Mapped[uuid.UUID]
    job_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    training_job_id: Mapped[uuid.UUID | None]
    version_id: Mapped[uuid.UUID | None]
    release_version_id: Mapped[uuid.UUID | None]
    alias: Mapped[str]
    by: Mapped[str | None]
    """Who asked for it, as ``tenancy.persons`` names people; None: a release before asked."""
    gate: Mapped[dict[str, Any]]
    promoted: Mapped[bool | None]
    findings: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    """What the gate decided by: for each suite whether it passed, and the sentences that say why."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        tenant_fk("project_id", "projects"),
        tenant_fk("job_id", "jobs"),
        tenant_fk("training_job_id", "jobs"),
        tenant_fk("version_id", "expert_versions"),
        tenant_fk("release_version_id", "release_versions"),
        CheckConstraint("num_nonnulls(version_id, release_version_id) <= 1", name="one_version"),
        Index("ix_promotions_project", "org_id", "project_id", "id"),
        Index("ix_promotions_training", "training_job_id"),
    )
