"""What admission needs to be fair: what jobs take, what organisations have used and may use, and who waits for what."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What each table grants to the API's role; see the baseline.
TABLES: dict[str, tuple[str, ...]] = {
    "quotas": ("SELECT",),
    "usages": ("SELECT",),
    "queue_places": ("SELECT",),
}


def upgrade() -> None:
    op.add_column("agents", sa.Column("jobs_per_worker", sa.Integer(), server_default="1", nullable=False))
    op.add_column("attempts", sa.Column("workers", sa.Float(), server_default="1", nullable=False))
    # What ended before is not charged.
    op.add_column("attempts", sa.Column("charged", sa.Boolean(), server_default="true", nullable=False))
    op.alter_column("attempts", "charged", server_default="false")
    op.create_index(
        "ix_attempts_charge",
        "attempts",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL AND NOT charged"),
    )
    op.add_column("jobs", sa.Column("workers", sa.Integer(), server_default="1", nullable=False))
    op.add_column("jobs", sa.Column("expected_s", sa.Float(), nullable=True))
    op.add_column(
        "jobs", sa.Column("ranked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    )
    op.execute("UPDATE jobs SET ranked_at = created_at - priority * interval '10 minutes'")
    op.create_index(
        "ix_jobs_rank",
        "jobs",
        ["cluster", "org_id", "ranked_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("ix_jobs_held", "jobs", ["cluster"], unique=False, postgresql_where=sa.text(HELD))
    op.create_index("ix_jobs_light", "jobs", ["created_at", "id"], unique=False, postgresql_where=sa.text(LIGHT))
    op.create_table(
        "quotas",
        sa.Column("weight", sa.Float(), server_default="1", nullable=False),
        sa.Column("max_workers", sa.Float(), nullable=True),
        sa.Column("max_queued", sa.Integer(), nullable=True),
        *_own("quotas"),
        sa.UniqueConstraint("org_id", name=op.f("uq_quotas_org_id")),
        sa.CheckConstraint("weight > 0", name=op.f("ck_quotas_weight")),
    )
    op.create_table(
        "usages",
        sa.Column("cluster", sa.Text(), nullable=False),
        sa.Column("worker_seconds", sa.Float(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        *_own("usages"),
        sa.UniqueConstraint("org_id", "cluster", name=op.f("uq_usages_org_id_cluster")),
    )
    op.create_table(
        "queue_places",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=True),
        *_own("queue_places"),
        sa.ForeignKeyConstraint(
            ["org_id", "job_id"],
            ["jobs.org_id", "jobs.id"],
            name=op.f("fk_queue_places_org_id_job_id"),
        ),
        sa.UniqueConstraint("job_id", name=op.f("uq_queue_places_job_id")),
    )
    for table, grants in TABLES.items():
        tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
        op.execute(f"GRANT {', '.join(grants)} ON {table} TO zhub_app")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
        op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")


# Kinds that need no worker are found without a look at those that do.
LIGHT = "state = 'queued' AND kind = 'validate'"
HELD = "state IN ('admitted', 'starting', 'running', 'stopping')"


def _own(table: str) -> "list[sa.Column[Any] | sa.Constraint]":
    """What every tenant-owned table has."""
    return [
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{table}_org_id")),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{table}_org_id_id")),
    ]


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    op.drop_index("ix_jobs_rank", table_name="jobs")
    op.drop_index("ix_jobs_light", table_name="jobs")
    op.drop_index("ix_jobs_held", table_name="jobs")
    for column in ("ranked_at", "expected_s", "workers"):
        op.drop_column("jobs", column)
    op.drop_index("ix_attempts_charge", table_name="attempts")
    op.drop_column("attempts", "charged")
    op.drop_column("attempts", "workers")
    op.drop_column("agents", "jobs_per_worker")
