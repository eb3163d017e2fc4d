"""Which workers decompose a base model; and the API may say which do an evaluation that is still queued."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("base_models", sa.Column("cluster", sa.Text(), server_default="default", nullable=False))
    for table in ("base_models", "jobs"):
        op.execute(f"GRANT UPDATE (cluster) ON {table} TO zhub_app")


def downgrade() -> None:
    op.execute("REVOKE UPDATE (cluster) ON jobs FROM zhub_app")
    op.drop_column("base_models", "cluster")
