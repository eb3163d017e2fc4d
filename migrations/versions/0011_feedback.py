"""Feedback on answers, how much of it has come on each expert, and schedules that fire by that."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("experts", sa.Column("feedback_count", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("GRANT UPDATE (feedback_count) ON experts TO zhub_app")
    op.add_column("schedules", sa.Column("on_feedback", sa.Integer(), nullable=True))
    op.add_column("schedules", sa.Column("feedback_expert_id", sa.Uuid(), nullable=True))
    op.add_column("schedules", sa.Column("feedback_seen", sa.BigInteger(), server_default="0", nullable=False))
    op.create_foreign_key(
        op.f("fk_schedules_org_id_feedback_expert_id"),
        "schedules",
        "experts",
        ["org_id", "feedback_expert_id"],
        ["org_id", "id"],
    )
    op.create_check_constraint(
        op.f("ck_schedules_feedback"), "schedules", "(on_feedback IS NULL) = (feedback_expert_id IS NULL)"
    )
    op.create_table(
        "feedback",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("messages", postgresql.JSONB(), nullable=False),
        sa.Column("completion", sa.Text(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_feedback_org_id")),
        sa.ForeignKeyConstraint(
            ["org_id", "project_id"], ["projects.org_id", "projects.id"], name=op.f("fk_feedback_org_id_project_id")
        ),
        sa.ForeignKeyConstraint(
            ["org_id", "version_id"],
            ["expert_versions.org_id", "expert_versions.id"],
            name=op.f("fk_feedback_org_id_version_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
        sa.UniqueConstraint("org_id", "id", name=op.f("uq_feedback_org_id_id")),
        sa.UniqueConstraint(
            "org_id", "project_id", "idempotency_key", name=op.f("uq_feedback_org_id_project_id_idempotency_key")
        ),
        sa.CheckConstraint("score BETWEEN -1 AND 1", name=op.f("ck_feedback_score")),
    )
    op.create_index("ix_feedback_project", "feedback", ["project_id", "id"], unique=False)
    op.create_index(
        "ix_feedback_version",
        "feedback",
        ["version_id", "id"],
        unique=False,
        postgresql_include=["score"],
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_feedback_deleted",
        "feedback",
        ["deleted_at"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON feedback TO zhub_system")
    op.execute("GRANT SELECT, INSERT, UPDATE (deleted_at) ON feedback TO zhub_app")
    op.execute("ALTER TABLE feedback ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE feedback FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON feedback TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute("CREATE POLICY system ON feedback TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table("feedback")
    op.drop_constraint("ck_schedules_feedback", "schedules")
    op.drop_column("schedules", "feedback_seen")
    op.drop_column("schedules", "feedback_expert_id")
    op.drop_column("schedules", "on_feedback")
    op.drop_column("experts", "feedback_count")
