"""Jobs are described and archived, and found by what they are."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("description", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_jobs_failed",
        "jobs",
        ["org_id", "project_id", "kind", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'failed'"),
    )
    # Of the request only the metadata is changed, and the API is all that reads it: workers get the spec.
    op.execute("GRANT UPDATE (description, archived_at, request) ON jobs TO zhub_app")
    op.create_index("ix_evaluations_project", "evaluations", ["org_id", "project_id", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_evaluations_project", table_name="evaluations")
    op.drop_index("ix_jobs_failed", table_name="jobs")
    op.execute("REVOKE UPDATE (request) ON jobs FROM zhub_app")
    op.drop_column("jobs", "archived_at")
    op.drop_column("jobs", "description")
