"""The node where an attempt's worker died: a job that brings down one worker after the other is not tried again."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("died_on", sa.Text(), nullable=True))
    op.create_index(
        "ix_attempts_died_on",
        "attempts",
        ["died_on", "ended_at"],
        unique=False,
        postgresql_where=sa.text("died_on IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_attempts_died_on", table_name="attempts")
    op.drop_column("attempts", "died_on")
