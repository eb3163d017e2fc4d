"""The tables. Everything a tenant owns carries ``org_id`` and is fenced by row-level security.

Foreign keys between tenant-owned tables are composite, ``(org_id, x_id)``: foreign-key checks bypass row-level
security, so a single-column key would let one tenant point at another's row. Names are never keys.
"""

import uuid
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from zhub import states
from zhub.ids import new_id


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), str: Text(), dict[str, Any]: JSONB()}


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _tenant_fk(column: str, table: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["org_id", column], [f"{table}.org_id", f"{table}.id"])


class Organization(Base):
    """A tenant. Its own row is fenced like everything it owns, on ``id``."""

    __tablename__ = "organizations"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TenantOwned:
    """Columns that every tenant-owned table has."""

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    org_id: Mapped[uuid.UUID] = mapped_column(Uuid, ForeignKey("organizations.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Project(TenantOwned, Base):
    """Where a team's datasets, jobs and experts live."""

    __tablename__ = "projects"
    name: Mapped[str]
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "name"))


class ApiKey(TenantOwned, Base):
    """A key of one project: ``prefix`` finds the row, ``hash`` (HMAC-SHA-256) proves the secret, shown once."""

    __tablename__ = "api_keys"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSONB)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("org_id", "id"), _tenant_fk("project_id", "projects"))


class BaseModel(Base):
    """A frozen base model. Owned by the platform: every organisation may train on it and serve from it."""

    __tablename__ = "base_models"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(default="uploading")
    error: Mapped[str | None]
    source: Mapped[dict[str, Any]]
    weights_fingerprint: Mapped[str | None]
    basis_fingerprint: Mapped[str | None]
    basis_key_prefix: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """Found at decomposition: architecture, parameters, adapted matrices, z values, context length."""
    is_default: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        _one_of("status", states.BASE_MODEL_STATUSES),
        CheckConstraint("(status = 'ready') <= (basis_fingerprint IS NOT NULL)", name="ready_has_basis"),
        Index("uq_base_models_default", "is_default", unique=True, postgresql_where=text("is_default")),
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
        _tenant_fk("project_id", "projects"),
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
        _tenant_fk("project_id", "projects"),
        _tenant_fk("dataset_id", "datasets"),
        _one_of("status", states.FILE_STATUSES),
    )


class Expert(TenantOwned, Base):
    """A named line of versions; ``last_version`` keeps their numbers gapless. Each version names its base model."""

    __tablename__ = "experts"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    last_version: Mapped[int] = mapped_column(default=0)
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "name"),
        _tenant_fk("project_id", "projects"),
    )


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
    """Jobs with the same one may share a worker, see ``zhub.packing``."""
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
    """Those before a redrive, which gives the job a new budget."""
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    traceparent: Mapped[str | None]
    """The span that asked for it, see ``zhub.tracing``."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "project_id", "idempotency_key"),
        _tenant_fk("project_id", "projects"),
        _tenant_fk("dataset_version_id", "dataset_versions"),
        _tenant_fk("validation_version_id", "dataset_versions"),
        _tenant_fk("expert_id", "experts"),
        _one_of("kind", states.JOB_KINDS),
        _one_of("desired", states.DESIRED),
        _one_of("state", states.JOB_STATES),
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
            "ix_jobs_light", "created_at", "id", postgresql_where=text("state = 'queued' AND kind = 'validate'")
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
    )  # fmt: skip


class JobDependency(TenantOwned, Base):
    """A job that waits for another: until that has succeeded, or, for a gate, until it has ended."""

    __tablename__ = "job_dependencies"
    job_id: Mapped[uuid.UUID]
    needs_job_id: Mapped[uuid.UUID]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("job_id", "needs_job_id"),
        _tenant_fk("job_id", "jobs"),
        _tenant_fk("needs_job_id", "jobs"),
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
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    message: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("job_id", "fence"),
        _tenant_fk("job_id", "jobs"),
        _one_of("outcome", states.OUTCOMES),
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
        Index("ix_attempts_open", "org_id", postgresql_where=text("ended_at IS NULL")),
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
        _tenant_fk("job_id", "jobs"),
        _one_of("level", states.EVENT_LEVELS),
        _one_of("type", states.EVENT_TYPES),
        Index("ix_job_events_job", "job_id", "xid", "position"),
    )


class ExpertVersion(TenantOwned, Base):
    """An immutable version: at most one for each job, and made under the fence that the job had then."""

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
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("expert_id", "version"),
        _tenant_fk("expert_id", "experts"),
        _tenant_fk("job_id", "jobs"),
    )


class Alias(TenantOwned, Base):
    """A name for the version of an expert that it stands on now, ``@prod`` say. Every move has a row of its own."""

    __tablename__ = "aliases"
    expert_id: Mapped[uuid.UUID]
    name: Mapped[str]
    version_id: Mapped[uuid.UUID]
    moved_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("expert_id", "name"),
        _tenant_fk("expert_id", "experts"),
        _tenant_fk("version_id", "expert_versions"),
    )


class AliasMove(TenantOwned, Base):
    """One move of an alias, append-only. The first has no version before it."""

    __tablename__ = "alias_moves"
    alias_id: Mapped[uuid.UUID]
    position: Mapped[int] = mapped_column(BigInteger, Identity())
    """Given under the lock on the alias, so the moves of one alias are in order."""
    from_version_id: Mapped[uuid.UUID | None]
    to_version_id: Mapped[uuid.UUID]
    by: Mapped[str]
    """Who moved it: the id of a key or of a promotion."""
    reason: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        _tenant_fk("alias_id", "aliases"),
        _tenant_fk("from_version_id", "expert_versions"),
        _tenant_fk("to_version_id", "expert_versions"),
        Index("ix_alias_moves_alias", "alias_id", "position"),
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
        _tenant_fk("job_id", "jobs"),
        Index("ix_checkpoints_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )


class Evaluation(TenantOwned, Base):
    """One subject, a base or a version, measured on one suite: never twice. Its status is that of its job.

    What makes two suites equal is ``suite_digest``; ``version_id`` is null where the base itself is the subject.
    """

    __tablename__ = "evaluations"
    project_id: Mapped[uuid.UUID]
    job_id: Mapped[uuid.UUID]
    base_model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("base_models.id"))
    version_id: Mapped[uuid.UUID | None]
    suite_digest: Mapped[str]
    suite: Mapped[dict[str, Any]]
    results: Mapped[dict[str, Any] | None]
    rewards: Mapped[list[float] | None] = mapped_column(JSONB)
    """Of the greedy answer to each row, in the file's order: what paired comparisons are made of."""
    rows_key: Mapped[str | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint(
            "project_id", "base_model_id", "version_id", "suite_digest",
            name="uq_evaluations_subject_suite", postgresql_nulls_not_distinct=True,
        ),
        _tenant_fk("project_id", "projects"),
        _tenant_fk("job_id", "jobs"),
        _tenant_fk("version_id", "expert_versions"),
        Index("ix_evaluations_job", "job_id"),
    )  # fmt: skip


class Promotion(TenantOwned, Base):
    """A version that shall get an alias if it passes its gate. Its status is that of its job, of the kind ``gate``.

    ``version_id`` is null until the training ``training_job_id`` has published.
    """

    __tablename__ = "promotions"
    project_id: Mapped[uuid.UUID]
    job_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    training_job_id: Mapped[uuid.UUID | None]
    version_id: Mapped[uuid.UUID | None]
    alias: Mapped[str]
    gate: Mapped[dict[str, Any]]
    promoted: Mapped[bool | None]
    findings: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    """What the gate decided by: for each suite whether it passed, and the sentences that say why."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        _tenant_fk("project_id", "projects"),
        _tenant_fk("job_id", "jobs"),
        _tenant_fk("training_job_id", "jobs"),
        _tenant_fk("version_id", "expert_versions"),
        Index("ix_promotions_project", "org_id", "project_id", "id"),
        Index("ix_promotions_training", "training_job_id"),
    )


class Schedule(TenantOwned, Base):
    """Trainings that are submitted by themselves. ``next_at`` is the next tick, ``fires_at`` that with its jitter."""

    __tablename__ = "schedules"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    dataset_id: Mapped[uuid.UUID]
    request: Mapped[dict[str, Any]]
    """For fine-tuning, without its training file."""
    cron: Mapped[str | None]
    timezone: Mapped[str]
    on_new_data: Mapped[bool]
    misfire: Mapped[str]
    overlap: Mapped[str]
    catch_up_s: Mapped[int]
    max_backfill: Mapped[int]
    jitter_s: Mapped[int]
    max_failures: Mapped[int]
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    """Runs that failed since the last one that did not."""
    paused_because: Mapped[str | None]
    next_at: Mapped[datetime | None]
    fires_at: Mapped[datetime | None]
    seen_version_id: Mapped[uuid.UUID | None]
    """The newest version of the dataset that it has fired for, or found when it was made."""
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        Index("uq_schedules_name", "project_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
        _tenant_fk("project_id", "projects"),
        _tenant_fk("dataset_id", "datasets"),
        _tenant_fk("seen_version_id", "dataset_versions"),
        _one_of("misfire", states.MISFIRES),
        _one_of("overlap", states.OVERLAPS),
        CheckConstraint("(cron IS NULL) = (fires_at IS NULL)", name="fires"),
        Index("ix_schedules_fires", "fires_at", postgresql_where=text("paused_because IS NULL")),
    )


class ScheduleTick(TenantOwned, Base):
    """What became of one tick of a schedule; ``key`` is its time, or what else it was for."""

    __tablename__ = "schedule_ticks"
    schedule_id: Mapped[uuid.UUID]
    key: Mapped[str]
    outcome: Mapped[str]
    message: Mapped[str | None]
    job_id: Mapped[uuid.UUID | None]
    counted: Mapped[bool] = mapped_column(default=False, server_default="false")
    """Whether the end of its job is in ``failures`` of the schedule."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("schedule_id", "key"),
        _tenant_fk("schedule_id", "schedules"),
        _tenant_fk("job_id", "jobs"),
        _one_of("outcome", states.TICK_OUTCOMES),
        Index("ix_schedule_ticks_schedule", "schedule_id", "id"),
        Index(
            "ix_schedule_ticks_open",
            "schedule_id",
            postgresql_where=text("NOT counted AND outcome IN ('fired', 'buffered')"),
        ),
    )


class Quota(TenantOwned, Base):
    """What an organisation may use, where it is not the default: an equal share, and no limit."""

    __tablename__ = "quotas"
    weight: Mapped[float] = mapped_column(default=1.0, server_default="1")
    max_workers: Mapped[float | None]
    """That its jobs may hold in one cluster at a time."""
    max_queued: Mapped[int | None]
    """Jobs that may wait at a time."""
    nominal_workers: Mapped[float] = mapped_column(default=0.0, server_default="0")
    """Of each cluster, that it gets back from others as soon as it wants them."""
    monthly_worker_hours: Mapped[float | None]
    """That its jobs may use in a calendar month."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id"),
        CheckConstraint("weight > 0", name="weight"),
    )


class Usage(TenantOwned, Base):
    """What an organisation has used of a cluster: worker-seconds until ``at``, of which half is left a day later."""

    __tablename__ = "usages"
    cluster: Mapped[str]
    worker_seconds: Mapped[float]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "cluster"))


class MonthUsage(TenantOwned, Base):
    """What an organisation has used in a calendar month (UTC), in all clusters, by attempts that have ended."""

    __tablename__ = "month_usages"
    month: Mapped[date]
    worker_seconds: Mapped[float]
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "month"))


class QueuePlace(TenantOwned, Base):
    """What a queued job waits for, as the leader saw it last. ``position`` counts from 1 in its cluster."""

    __tablename__ = "queue_places"
    job_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    position: Mapped[int | None]
    reason: Mapped[str]
    starts_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("org_id", "id"), _tenant_fk("job_id", "jobs"))


class WebhookEndpoint(TenantOwned, Base):
    """An address that a project's events are sent to. Its signing secret is derived, and stored nowhere."""

    __tablename__ = "webhook_endpoints"
    project_id: Mapped[uuid.UUID]
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]] = mapped_column(JSONB)
    status: Mapped[str] = mapped_column(default="enabled")
    status_details: Mapped[str | None]
    """Why it is disabled."""
    rotation: Mapped[int] = mapped_column(default=0)
    """How often its secret was rotated; the secret is derived from it."""
    old_secret_until: Mapped[datetime | None]
    """Until when the secret before the last rotation signs as well."""
    last_success_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        _tenant_fk("project_id", "projects"),
        _one_of("status", states.WEBHOOK_ENDPOINT_STATUSES),
        Index("ix_webhook_endpoints_project", "org_id", "project_id"),
    )


class WebhookDelivery(TenantOwned, Base):
    """One event on its way to one endpoint: the outbox. Written with what it tells, in the same transaction."""

    __tablename__ = "webhook_deliveries"
    endpoint_id: Mapped[uuid.UUID]
    event_id: Mapped[uuid.UUID]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    next_try_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    """When it is due; in the near future while somebody sends it; None once it has ended."""
    tries_left: Mapped[int]
    delivered_at: Mapped[datetime | None]
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    """``{"at", "status_code", "error", "duration_s", "next_try_at"}`` of each, oldest first."""
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("endpoint_id", "event_id"),
        _tenant_fk("endpoint_id", "webhook_endpoints"),
        Index(
            "ix_webhook_deliveries_due", "endpoint_id", "next_try_at",
            postgresql_where=text("next_try_at IS NOT NULL"),
        ),
        Index("ix_webhook_deliveries_age", "created_at"),
    )  # fmt: skip


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


TENANT_OWNED = tuple(
    sorted(str(mapper.local_table) for mapper in Base.registry.mappers if issubclass(mapper.class_, TenantOwned))
)
