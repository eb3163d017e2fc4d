"""Jobs that wait for others, aliases of expert versions, and promotions through a gate."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What each table grants to the API's role; see the baseline.
TABLES: dict[str, tuple[str, ...]] = {
    "job_dependencies": ("SELECT", "INSERT"),
    "aliases": ("SELECT", "INSERT", "UPDATE"),
    "alias_moves": ("SELECT", "INSERT"),
    "promotions": ("SELECT", "INSERT"),
}
WISH = "desired <> 'run' AND state IN ('waiting', 'queued', 'admitted')"
ADMITTED, PAUSED = "state = 'admitted'", "state = 'paused'"
FORGIVEN = ("forgiven_user_failures", "forgiven_infra_failures")
REDRIVE = "desired = 'redrive' AND state IN ('failed', 'cancelled')"
RETRY = "state = 'queued' AND not_before IS NOT NULL"


def upgrade() -> None:
    for column in FORGIVEN:
        op.add_column("jobs", sa.Column(column, sa.Integer(), server_default="0", nullable=False))
    op.drop_constraint("ck_jobs_kind", "jobs")
    op.create_check_constraint(
        op.f("ck_jobs_kind"), "jobs", "kind IN ('validate', 'decompose', 'train', 'evaluate', 'gate')"
    )
    op.drop_constraint("ck_jobs_desired", "jobs")
    op.create_check_constraint(
        op.f("ck_jobs_desired"), "jobs", "desired IN ('run', 'pause', 'cancel', 'preempt', 'redrive')"
    )
    op.create_index("ix_jobs_redrive", "jobs", ["id"], unique=False, postgresql_where=sa.text(REDRIVE))
    op.create_index(
        "ix_jobs_waiting", "jobs", ["org_id", "id"], unique=False, postgresql_where=sa.text("state = 'waiting'")
    )
    op.create_index("ix_jobs_wish", "jobs", ["desired"], unique=False, postgresql_where=sa.text(WISH))
    op.create_index("ix_jobs_paused", "jobs", ["desired"], unique=False, postgresql_where=sa.text(PAUSED))
    op.create_index("ix_jobs_retry", "jobs", ["not_before"], unique=False, postgresql_where=sa.text(RETRY))
    op.drop_index("ix_jobs_queued", table_name="jobs")
    # Admission has put them into their order.
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.create_index(
        "ix_jobs_claim",
        "jobs",
        ["cluster", "admitted_at", "id"],
        unique=False,
        postgresql_where=sa.text(ADMITTED),
    )
    # Who could decide what is trained may decide what is used. The owner is fenced as well, but for this.
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute("""UPDATE api_keys SET scopes = scopes || '["models:write"]' WHERE scopes @> '["jobs:write"]'""")
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")
    op.create_table(
        "job_dependencies",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("needs_job_id", sa.Uuid(), nullable=False),
        *_own("job_dependencies", {"job_id": "jobs", "needs_job_id": "jobs"}),
        sa.UniqueConstraint("job_id", "needs_job_id", name=op.f("uq_job_dependencies_job_id_needs_job_id")),
    )
    op.create_index("ix_job_dependencies_needs", "job_dependencies", ["needs_job_id"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("expert_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        *_own("aliases", {"expert_id": "experts", "version_id": "expert_versions"}),
        sa.UniqueConstraint("expert_id", "name", name=op.f("uq_aliases_expert_id_name")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("alias_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("from_version_id", sa.Uuid(), nullable=True),
        sa.Column("to_version_id", sa.Uuid(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        *_own(
            "alias_moves",
            {"alias_id": "aliases", "from_version_id": "expert_versions", "to_version_id": "expert_versions"},
        ),
    )
    op.create_index("ix_alias_moves_alias", "alias_moves", ["alias_id", "position"], unique=False)
    op.create_table(
        "promotions",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("training_job_id", sa.Uuid(), nullable=True),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("gate", postgresql.JSONB(), nullable=False),
        sa.Column("promoted", sa.Boolean(), nullable=True),
        sa.Column("findings", postgresql.JSONB(), nullable=True),
        *_own(
            "promotions",
            {
                "project_id": "projects",
                "job_id": "jobs",
                "training_job_id": "jobs",
                "version_id": "expert_versions",
            },
        ),
        sa.UniqueConstraint("job_id", name=op.f("uq_promotions_job_id")),
    )
    op.create_index("ix_promotions_project", "promotions", ["org_id", "project_id", "id"], unique=False)
    op.create_index("ix_promotions_training", "promotions", ["training_job_id"], unique=False)
    for table, grants in TABLES.items():
        tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
        op.execute(f"GRANT {', '.join(grants)} ON {table} TO zhub_app")
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
    for table in ("promotions", "alias_moves", "aliases", "job_dependencies"):
        op.drop_table(table)
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.create_index(
        "ix_jobs_claim",
        "jobs",
        ["cluster", sa.text("priority DESC"), "admitted_at", "id"],
        unique=False,
        postgresql_where=sa.text(ADMITTED),
    )
    op.create_index(
        "ix_jobs_queued", "jobs", ["created_at", "id"], unique=False, postgresql_where=sa.text("state = 'queued'")
    )
    for column in FORGIVEN:
        op.drop_column("jobs", column)
    op.drop_index("ix_jobs_redrive", table_name="jobs")
    op.drop_index("ix_jobs_retry", table_name="jobs")
    op.drop_index("ix_jobs_paused", table_name="jobs")
    op.drop_index("ix_jobs_wish", table_name="jobs")
    op.drop_index("ix_jobs_waiting", table_name="jobs")
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE api_keys SET scopes = scopes - 'models:write'")
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE jobs NO FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE job_events NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE jobs SET desired = 'run' WHERE desired = 'redrive'")
    op.execute("DELETE FROM job_events WHERE job_id IN (SELECT id FROM jobs WHERE kind = 'gate')")
    op.execute("DELETE FROM jobs WHERE kind = 'gate'")
    op.execute("ALTER TABLE jobs FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE job_events FORCE ROW LEVEL SECURITY")
    op.drop_constraint("ck_jobs_kind", "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", "kind IN ('validate', 'decompose', 'train', 'evaluate')")
    op.drop_constraint("ck_jobs_desired", "jobs")
    op.create_check_constraint(op.f("ck_jobs_desired"), "jobs", "desired IN ('run', 'pause', 'cancel', 'preempt')")
