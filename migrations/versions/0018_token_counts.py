"""Which rows of a file have more tokens than the context of a base; the jobs of a file, found by an index."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "token_counts",
        sa.Column("dataset_version_id", sa.Uuid(), nullable=False),
        sa.Column("base_model_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("context_length", sa.Integer(), nullable=True),
        sa.Column("long_row_count", sa.Integer(), nullable=True),
        sa.Column("long_rows", postgresql.JSONB(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_token_counts_org_id")),
        sa.ForeignKeyConstraint(["base_model_id"], ["base_models.id"], name=op.f("fk_token_counts_base_model_id")),
        sa.ForeignKeyConstraint(
            ["org_id", "dataset_version_id"],
            ["dataset_versions.org_id", "dataset_versions.id"],
            name=op.f("fk_token_counts_org_id_dataset_version_id"),
        ),
        sa.ForeignKeyConstraint(
            ["org_id", "job_id"], ["jobs.org_id", "jobs.id"], name=op.f("fk_token_counts_org_id_job_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token_counts")),
        sa.UniqueConstraint("org_id", "id", name=op.f("uq_token_counts_org_id_id")),
        sa.UniqueConstraint(
            "dataset_version_id", "base_model_id", name=op.f("uq_token_counts_dataset_version_id_base_model_id")
        ),
    )
    op.create_index("ix_token_counts_job", "token_counts", ["job_id"], unique=False)
    op.create_index(
        "ix_jobs_dataset",
        "jobs",
        ["dataset_version_id"],
        unique=False,
        postgresql_where=sa.text("dataset_version_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_validation",
        "jobs",
        ["validation_version_id"],
        unique=False,
        postgresql_where=sa.text("validation_version_id IS NOT NULL"),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON token_counts TO zhub_system")
    op.execute("GRANT SELECT, INSERT, UPDATE (job_id) ON token_counts TO zhub_app")
    op.execute("ALTER TABLE token_counts ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE token_counts FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON token_counts TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute("CREATE POLICY system ON token_counts TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_index("ix_jobs_validation", table_name="jobs")
    op.drop_index("ix_jobs_dataset", table_name="jobs")
    op.drop_table("token_counts")
