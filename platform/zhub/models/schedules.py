"""Schedules and their ticks."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from zhub import states
from zhub.models.base import Base, TenantOwned, one_of, tenant_fk


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
    """The newest version of the dataset that it has fired for, or found when it was made or given this dataset."""
    watched_alias_id: Mapped[uuid.UUID | None]
    """It fires when an evaluation finds the version that this alias points to worse than its base."""
    on_feedback: Mapped[int | None]
    """It fires when so many pieces of feedback have come on this expert, the one it trains, since ``feedback_seen``."""
    feedback_expert_id: Mapped[uuid.UUID | None]
    feedback_seen: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """``feedback_count`` of that expert when it last fired for it, or was resumed, or was given this expert."""
    on_completions: Mapped[int | None]
    """It makes a version of its dataset when so many completions have come that ``completions_where`` describes."""
    completions_where: Mapped[str | None]
    completions_seen: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """``changes`` of its project up to which they are counted, in ``completions_new``."""
    completions_new: Mapped[int] = mapped_column(default=0, server_default="0")
    """How many of them have come since it last fired for them."""
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        Index("uq_schedules_name", "project_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
        tenant_fk("project_id", "projects"),
        tenant_fk("dataset_id", "datasets"),
        tenant_fk("seen_version_id", "dataset_versions"),
        tenant_fk("watched_alias_id", "aliases"),
        tenant_fk("feedback_expert_id", "experts"),
        one_of("misfire", states.MISFIRES),
        one_of("overlap", states.OVERLAPS),
        CheckConstraint("(cron IS NULL) = (fires_at IS NULL)", name="fires"),
        CheckConstraint("(on_feedback IS NULL) = (feedback_expert_id IS NULL)", name="feedback"),
        CheckConstraint("(on_completions IS NULL) = (completions_where IS NULL)", name="completions"),
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
        tenant_fk("schedule_id", "schedules"),
        tenant_fk("job_id", "jobs"),
        one_of("outcome", states.TICK_OUTCOMES),
        Index("ix_schedule_ticks_schedule", "schedule_id", "id"),
        Index(
            "ix_schedule_ticks_open",
            "schedule_id",
            postgresql_where=text("NOT counted AND outcome IN ('fired', 'buffered')"),
        ),
    )
