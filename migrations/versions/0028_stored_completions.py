"""Stored completions, feedback on them, datasets that are made of them, and schedules that fire by them.

The previous release reads of each piece of feedback the version that it is about: until all processes are of this
release, its lists fail where somebody has rated an answer that no single version gave.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0028"
down_revision: str | None = "0027"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What each table grants to the API's role; see the baseline.
TABLES: dict[str, str] = {
    "completion_settings": "SELECT, INSERT, UPDATE (enabled, kept_days, redactors, cleared_at, changes, stored_bytes)",
    "stored_completions": "SELECT, INSERT, UPDATE (labels, change, rating, rated_choice, deleted_at)",
    "completion_datasets": "SELECT, INSERT",
}
OUTCOMES = "'fired', 'buffered', 'skipped_overlap', 'skipped_misfire', 'refused', 'no_regression'"
# A key that may do everything else may also say what its project keeps.
ALL_SCOPES = (
    '["files:read", "files:write", "jobs:read", "jobs:write", "models:read", "models:write", "chat", '
    '"base_models:write", "webhooks:read", "webhooks:write"]'
)


def upgrade() -> None:
    _create_tables()
    op.alter_column("feedback", "version_id", nullable=True)
    op.add_column("feedback", sa.Column("completion_id", sa.Uuid(), nullable=True))
    op.add_column("feedback", sa.Column("choice", sa.Integer(), nullable=True))
    op.create_foreign_key(
        op.f("fk_feedback_org_id_completion_id"),
        "feedback",
        "stored_completions",
        ["org_id", "completion_id"],
        ["org_id", "id"],
    )
    for check, condition in {
        "sample": "version_id IS NOT NULL OR completion_id IS NOT NULL",
        "choice": "(completion_id IS NULL) = (choice IS NULL)",
    }.items():
        op.create_check_constraint(op.f(f"ck_feedback_{check}"), "feedback", condition)
    op.create_index("ix_feedback_completion", "feedback", ["completion_id"])
    op.add_column("schedules", sa.Column("on_completions", sa.Integer(), nullable=True))
    op.add_column("schedules", sa.Column("completions_where", sa.Text(), nullable=True))
    op.add_column("schedules", sa.Column("completions_seen", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("schedules", sa.Column("completions_new", sa.Integer(), server_default="0", nullable=False))
    op.create_check_constraint(
        op.f("ck_schedules_completions"), "schedules", "(on_completions IS NULL) = (completions_where IS NULL)"
    )
    _set_outcomes(f"{OUTCOMES}, 'collected'")
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute(f"""UPDATE api_keys SET scopes = scopes || '["project:write"]' WHERE scopes @> '{ALL_SCOPES}'""")
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")


def _create_tables() -> None:
    op.create_table(
        "completion_settings",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("kept_days", sa.Integer(), nullable=False),
        sa.Column("redactors", postgresql.JSONB(), nullable=False),
        sa.Column("cleared_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), server_default="0", nullable=False),
        *_own("completion_settings", {"project_id": "projects"}),
        sa.UniqueConstraint("org_id", "project_id", name=op.f("uq_completion_settings_org_id_project_id")),
        sa.CheckConstraint("kept_days > 0", name=op.f("ck_completion_settings_kept_days")),
    )
    op.create_table(
        "stored_completions",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        sa.Column("request", postgresql.JSONB(), nullable=False),
        sa.Column("answer", postgresql.JSONB(), nullable=False),
        sa.Column("labels", postgresql.JSONB(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("change", sa.BigInteger(), nullable=False),
        sa.Column("rating", sa.Float(), nullable=True),
        sa.Column("rated_choice", sa.Integer(), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        *_own("stored_completions", {"project_id": "projects", "version_id": "expert_versions"}),
        sa.CheckConstraint("(rating IS NULL) = (rated_choice IS NULL)", name=op.f("ck_stored_completions_rating")),
    )
    op.create_index("ix_stored_completions_project", "stored_completions", ["project_id", "id"])
    op.create_index("ix_stored_completions_age", "stored_completions", ["project_id", "created_at"])
    op.create_index("ix_stored_completions_change", "stored_completions", ["project_id", "change"])
    op.create_index("ix_stored_completions_version", "stored_completions", ["version_id"])
    op.create_index(
        "ix_stored_completions_deleted",
        "stored_completions",
        ["project_id"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_table(
        "completion_datasets",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("where", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("max_rows", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), server_default="queued", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("claim", sa.Uuid(), nullable=True),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("provenance", postgresql.JSONB(), nullable=True),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        *_own("completion_datasets", {"project_id": "projects", "version_id": "dataset_versions"}),
        sa.CheckConstraint("status IN ('queued', 'succeeded', 'failed')", name=op.f("ck_completion_datasets_status")),
    )
    op.create_index("ix_completion_datasets_project", "completion_datasets", ["project_id", "id"])
    op.create_index(
        "ix_completion_datasets_queued", "completion_datasets", ["id"], postgresql_where=sa.text("status = 'queued'")
    )
    op.create_index("ix_completion_datasets_version", "completion_datasets", ["version_id"])
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    for table, grants in TABLES.items():
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
        op.execute(f"GRANT {grants} ON {table} TO zhub_app")
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


def _set_outcomes(values: str) -> None:
    op.drop_constraint(op.f("ck_schedule_ticks_outcome"), "schedule_ticks")
    op.create_check_constraint(op.f("ck_schedule_ticks_outcome"), "schedule_ticks", f"outcome IN ({values})")


def downgrade() -> None:
    # The owner is fenced by row-level security as well, but for this.
    for table in ("api_keys", "feedback", "schedule_ticks"):
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE api_keys SET scopes = scopes - 'project:write'")
    op.execute("DELETE FROM feedback WHERE completion_id IS NOT NULL")
    op.execute("DELETE FROM schedule_ticks WHERE outcome = 'collected'")
    for table in ("api_keys", "feedback", "schedule_ticks"):
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    _set_outcomes(OUTCOMES)
    op.drop_constraint(op.f("ck_schedules_completions"), "schedules")
    for column in ("completions_new", "completions_seen", "completions_where", "on_completions"):
        op.drop_column("schedules", column)
    for check in ("choice", "sample"):
        op.drop_constraint(op.f(f"ck_feedback_{check}"), "feedback")
    op.drop_column("feedback", "choice")
    op.drop_column("feedback", "completion_id")
    op.alter_column("feedback", "version_id", nullable=False)
    for table in ("completion_datasets", "stored_completions", "completion_settings"):
        op.drop_table(table)
