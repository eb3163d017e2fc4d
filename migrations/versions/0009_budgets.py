"""Nominal shares that are taken back by preemption, monthly budgets, and keys that one live job has at a time."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

OUTCOMES = "'succeeded', 'failed_user', 'failed_infra', 'lost', 'cancelled', 'paused'"

LIVE = "dedup_key IS NOT NULL AND state NOT IN ('succeeded', 'failed', 'cancelled')"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("dedup_key", sa.Text(), nullable=True))
    op.create_index(
        "uq_jobs_dedup_key", "jobs", ["project_id", "dedup_key"], unique=True, postgresql_where=sa.text(LIVE)
    )
    op.drop_constraint("ck_attempts_outcome", "attempts")
    op.create_check_constraint(op.f("ck_attempts_outcome"), "attempts", f"outcome IN ({OUTCOMES}, 'preempted')")
    op.create_index(
        "ix_attempts_open", "attempts", ["org_id"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.add_column("quotas", sa.Column("nominal_workers", sa.Float(), server_default="0", nullable=False))
    op.add_column("quotas", sa.Column("monthly_worker_hours", sa.Float(), nullable=True))
    op.create_table(
        "month_usages",
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("worker_seconds", sa.Float(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_month_usages_org_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_month_usages")),
        sa.UniqueConstraint("org_id", "id", name=op.f("uq_month_usages_org_id_id")),
        sa.UniqueConstraint("org_id", "month", name=op.f("uq_month_usages_org_id_month")),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON month_usages TO zhub_system")
    op.execute("GRANT SELECT ON month_usages TO zhub_app")
    op.execute("ALTER TABLE month_usages ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE month_usages FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON month_usages TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute("CREATE POLICY system ON month_usages TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_index("uq_jobs_dedup_key", table_name="jobs")
    op.drop_column("jobs", "dedup_key")
    op.drop_table("month_usages")
    op.drop_column("quotas", "monthly_worker_hours")
    op.drop_column("quotas", "nominal_workers")
    op.drop_index("ix_attempts_open", table_name="attempts")
    op.drop_constraint("ck_attempts_outcome", "attempts")
    op.execute("ALTER TABLE attempts NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE attempts SET outcome = 'paused' WHERE outcome = 'preempted'")
    op.execute("ALTER TABLE attempts FORCE ROW LEVEL SECURITY")
    op.create_check_constraint(op.f("ck_attempts_outcome"), "attempts", f"outcome IN ({OUTCOMES})")
