"""Schedules, and one row for each tick of them."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("request", postgresql.JSONB(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("on_new_data", sa.Boolean(), nullable=False),
        sa.Column("misfire", sa.Text(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("catch_up_s", sa.Integer(), nullable=False),
        sa.Column("max_backfill", sa.Integer(), nullable=False),
        sa.Column("jitter_s", sa.Integer(), nullable=False),
        sa.Column("max_failures", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("paused_because", sa.Text(), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_version_id", sa.Uuid(), nullable=True),
        sa.Column("watched_alias_id", sa.Uuid(), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        *_own(
            "schedules",
            {
                "project_id": "projects",
                "dataset_id": "datasets",
                "seen_version_id": "dataset_versions",
                "watched_alias_id": "aliases",
            },
        ),
        sa.CheckConstraint("misfire IN ('skip', 'fire_once', 'backfill')", name=op.f("ck_schedules_misfire")),
        sa.CheckConstraint(
            "overlap IN ('skip', 'buffer_one', 'allow', 'cancel_running')", name=op.f("ck_schedules_overlap")
        ),
        sa.CheckConstraint("(cron IS NULL) = (fires_at IS NULL)", name=op.f("ck_schedules_fires")),
    )
    op.create_index(
        "ix_schedules_fires",
        "schedules",
        ["fires_at"],
        unique=False,
        postgresql_where=sa.text("paused_because IS NULL"),
    )
    op.create_index(
        "uq_schedules_name",
        "schedules",
        ["project_id", "name"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "schedule_ticks",
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("counted", sa.Boolean(), server_default="false", nullable=False),
        *_own("schedule_ticks", {"schedule_id": "schedules", "job_id": "jobs"}),
        sa.UniqueConstraint("schedule_id", "key", name=op.f("uq_schedule_ticks_schedule_id_key")),
        sa.CheckConstraint(
            "outcome IN ('fired', 'buffered', 'skipped_overlap', 'skipped_misfire', 'refused', 'no_regression')",
            name=op.f("ck_schedule_ticks_outcome"),
        ),
    )
    op.create_index("ix_schedule_ticks_schedule", "schedule_ticks", ["schedule_id", "id"], unique=False)
    op.create_index(
        "ix_schedule_ticks_open",
        "schedule_ticks",
        ["schedule_id"],
        unique=False,
        postgresql_where=sa.text("NOT counted AND outcome IN ('fired', 'buffered')"),
    )
    for table in ("schedules", "schedule_ticks"):
        tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO zhub_app")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
        op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")


def _own(table: str, references: dict[str, str]) -> "list[sa.Column[Any] | sa.Constraint]":
    """What every tenant-owned table has, and its references within the tenant, by column."""
    return [
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{table}_org_id")),
        *(
            sa.ForeignKeyConstraint(
                ["org_id", column], [f"{other}.org_id", f"{other}.id"], name=op.f(f"fk_{table}_org_id_{column}")
            )
            for column, other in references.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{table}_org_id_id")),
    ]


def downgrade() -> None:
    op.drop_table("schedule_ticks")
    op.drop_table("schedules")
