"""Jobs, their attempts and events, and the processes that look after them."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from zhub import states
from zhub.models.base import Base, TenantOwned, one_of, tenant_fk


class Job(TenantOwned, Base):
    """A job. The row is the only authority on its state and the only one that retries it."""

    __tablename__ = "jobs"
    project_id: Mapped[uuid.UUID]
    kind: Mapped[str]
    spec: Mapped[dict[str, Any]]
    request: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """What the user asked for, with every "auto" resolved: echoed by the API."""
    request_hash: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    dedup_key: Mapped[str | None]
    """No other job of the project that has not ended has the same one."""
    base_model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("base_models.id"))
    dataset_version_id: Mapped[uuid.UUID | None]
    validation_version_id: Mapped[uuid.UUID | None]
    expert_id: Mapped[uuid.UUID | None]

    desired: Mapped[str] = mapped_column(default="run")
    state: Mapped[str] = mapped_column(default=states.QUEUED)
    error: Mapped[dict[str, Any] | None]
    """``{"code", "message", "param"}`` of a failed job."""
    cluster: Mapped[str] = mapped_column(default="default")
    priority: Mapped[int] = mapped_column(default=0)
    pack_key: Mapped[str | None]
    """Jobs with the same one may share a worker, see ``zhub.training.packing``."""
    workers: Mapped[int] = mapped_column(default=1, server_default="1")
    """How many it takes where it does not share one."""
    expected_s: Mapped[float | None]
    """How long it may run, by what such jobs took before."""
    ranked_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Its place among its organisation's jobs: when it was made, earlier by ten minutes for each priority."""
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    agent_id: Mapped[uuid.UUID | None]
    lease_until: Mapped[datetime | None]
    progress_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    admitted_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    user_failures: Mapped[int] = mapped_column(default=0)
    infra_failures: Mapped[int] = mapped_column(default=0)
    forgiven_user_failures: Mapped[int] = mapped_column(default=0, server_default="0")
    forgiven_infra_failures: Mapped[int] = mapped_column(default=0, server_default="0")
    """Both columns count failures before the last redrive: a redrive moves the two counts above here."""
    """Those before a redrive, which gives the job a new budget."""
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    traceparent: Mapped[str | None]
    """The span that asked for it, see ``zhub.process.tracing``."""
    asked_by: Mapped[uuid.UUID | None]
    """The API key that asked for it; in its place may stand a schedule, or the job of a gate."""
    description: Mapped[str | None]
    archived_at: Mapped[datetime | None]
    """Since when lists leave it out, unless they are asked for it."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "idempotency_key"),
        tenant_fk("project_id", "projects"),
        tenant_fk("dataset_version_id", "dataset_versions"),
        tenant_fk("validation_version_id", "dataset_versions"),
        tenant_fk("expert_id", "experts"),
        one_of("desired", states.DESIRED),
        one_of("state", states.JOB_STATES),
        CheckConstraint("(state IN ('starting', 'running', 'stopping')) = (lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"),
        Index("ix_jobs_claim", "cluster", "admitted_at", "id", postgresql_where=text("state = 'admitted'")),
        Index("ix_jobs_rank", "cluster", "org_id", "ranked_at", "id", postgresql_where=text("state = 'queued'")),
        Index(
            "ix_jobs_held",
            "cluster",
            postgresql_where=text("state IN ('admitted', 'starting', 'running', 'stopping')"),
        ),
        Index(
            "ix_jobs_light", "kind", "created_at", "id", postgresql_where=text("state = 'queued'")
        ),
        Index(
            "ix_jobs_retry", "not_before", postgresql_where=text("state = 'queued' AND not_before IS NOT NULL")
        ),
        Index(
            "uq_jobs_dedup_key",
            "project_id",
            "dedup_key",
            unique=True,
            postgresql_where=text("dedup_key IS NOT NULL AND state NOT IN ('succeeded', 'failed', 'cancelled')"),
        ),
        Index("ix_jobs_waiting", "org_id", "id", postgresql_where=text("state = 'waiting'")),
        Index(
            "ix_jobs_wish",
            "desired",
            postgresql_where=text("desired <> 'run' AND state IN ('waiting', 'queued', 'admitted')"),
        ),
        Index(
            "ix_jobs_redrive",
            "id",
            postgresql_where=text("desired = 'redrive' AND state IN ('failed', 'cancelled')"),
        ),
        Index("ix_jobs_paused", "desired", postgresql_where=text("state = 'paused'")),
        Index("ix_jobs_lease", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_jobs_project", "org_id", "project_id", "kind", "id"),
        Index("ix_jobs_dataset", "dataset_version_id", postgresql_where=text("dataset_version_id IS NOT NULL")),
        Index(
            "ix_jobs_validation", "validation_version_id", postgresql_where=text("validation_version_id IS NOT NULL")
        ),
        Index("ix_jobs_failed", "org_id", "project_id", "kind", "id", postgresql_where=text("state = 'failed'")),
    )  # fmt: skip


class JobDependency(TenantOwned, Base):
    """A job that waits for another: until that has succeeded, or, for a gate, until it has ended."""

    __tablename__ = "job_dependencies"
    job_id: Mapped[uuid.UUID]
    needs_job_id: Mapped[uuid.UUID]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("job_id", "needs_job_id"),
        tenant_fk("job_id", "jobs"),
        tenant_fk("needs_job_id", "jobs"),
        Index("ix_job_dependencies_needs", "needs_job_id"),
    )


class Attempt(TenantOwned, Base):
    """One claim of a job: one row for each fence, for billing, history and debugging."""

    __tablename__ = "attempts"
    job_id: Mapped[uuid.UUID]
    fence: Mapped[int] = mapped_column(BigInteger)
    agent_id: Mapped[uuid.UUID]
    actor_name: Mapped[str | None]
    workers: Mapped[float] = mapped_column(default=1.0, server_default="1")
    """What it takes: a part of a worker where it shares one."""
    charged: Mapped[bool] = mapped_column(default=False, server_default="false")
    """Whether its organisation's usage has it."""
    died_on: Mapped[str | None]
    """The node, as its cluster names it, where the worker was seen to die under the attempt."""
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    message: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("job_id", "fence"),
        tenant_fk("job_id", "jobs"),
        one_of("outcome", states.OUTCOMES),
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
        Index("ix_attempts_open", "org_id", postgresql_where=text("ended_at IS NULL")),
        Index("ix_attempts_died_on", "died_on", "ended_at", postgresql_where=text("died_on IS NOT NULL")),
        Index("ix_attempts_charge", "ended_at", postgresql_where=text("ended_at IS NOT NULL AND NOT charged")),
    )


class JobEvent(TenantOwned, Base):
    """What happened to a job, append-only, in the order of (``xid``, ``position``).

    (``fence``, ``seq``) makes a repeated write harmless.
    """

    __tablename__ = "job_events"
    job_id: Mapped[uuid.UUID]
    xid: Mapped[int] = mapped_column(BigInteger, server_default=text("pg_current_xact_id()::text::bigint"))
    """The transaction that wrote it. Below ``pg_snapshot_xmin`` none is open any more, so nothing can come in between;
    a position alone is given before the commit, and a lower one may be committed after a higher one."""
    position: Mapped[int] = mapped_column(BigInteger, Identity())
    fence: Mapped[int | None] = mapped_column(BigInteger)
    seq: Mapped[int | None] = mapped_column(Integer)
    level: Mapped[str] = mapped_column(default="info")
    type: Mapped[str] = mapped_column(default="message")
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("job_id", "fence", "seq"),
        tenant_fk("job_id", "jobs"),
        one_of("level", states.EVENT_LEVELS),
        one_of("type", states.EVENT_TYPES),
        Index("ix_job_events_job", "job_id", "xid", "position"),
    )


class QueuePlace(TenantOwned, Base):
    """What a queued job waits for, as the leader saw it last. ``position`` counts from 1 in its cluster."""

    __tablename__ = "queue_places"
    job_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    position: Mapped[int | None]
    reason: Mapped[str]
    starts_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("org_id", "id"), tenant_fk("job_id", "jobs"))


class Leader(Base):
    """The elected scheduler: one row, moved by compare-and-swap, with a term that grows at each change of holder."""

    __tablename__ = "leaders"
    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[uuid.UUID]
    term: Mapped[int] = mapped_column(BigInteger, default=1)
    lease_until: Mapped[datetime]


class Agent(Base):
    """A process that drives one Ray cluster: seen lately, with ``slots`` workers of ``jobs_per_worker`` places each."""

    __tablename__ = "agents"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    cluster: Mapped[str]
    slots: Mapped[int]
    jobs_per_worker: Mapped[int] = mapped_column(default=1, server_default="1")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
