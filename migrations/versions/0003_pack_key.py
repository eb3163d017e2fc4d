"""Which jobs may share a worker; jobs of before need one of their own."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pack_key", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "pack_key")
