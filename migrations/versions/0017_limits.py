"""Limits of an organisation: bytes that it stores, and requests in a minute. NULL is the default of the release."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("quotas", sa.Column("max_bytes", sa.BigInteger(), nullable=True))
    op.add_column("quotas", sa.Column("requests_per_minute", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("quotas", "requests_per_minute")
    op.drop_column("quotas", "max_bytes")
