"""A kind of job is an entry in the code: the table neither lists the kinds nor has an index for one of them."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

KINDS = "kind IN ('validate', 'decompose', 'train', 'evaluate', 'gate')"


def upgrade() -> None:
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.drop_index("ix_jobs_light", table_name="jobs")
    op.create_index(
        "ix_jobs_light",
        "jobs",
        ["kind", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_light", table_name="jobs")
    op.create_index(
        "ix_jobs_light",
        "jobs",
        ["created_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' AND kind = 'validate'"),
    )
    # Refused by PostgreSQL while there are jobs of another kind: their history is not dropped silently.
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", KINDS)
