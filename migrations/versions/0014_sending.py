"""Until when a scheduler that sends to a webhook's endpoint has it alone."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("webhook_endpoints", sa.Column("sending_until", sa.DateTime(timezone=True), nullable=True))
    _index_due("endpoint_id", "tries_left", "next_try_at", "event_id")


def downgrade() -> None:
    _index_due("endpoint_id", "next_try_at")
    op.drop_column("webhook_endpoints", "sending_until")


def _index_due(*columns: str) -> None:
    """Of an endpoint's deliveries, in the order in which they are sent."""
    op.drop_index("ix_webhook_deliveries_due", "webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        list(columns),
        unique=False,
        postgresql_where=sa.text("next_try_at IS NOT NULL"),
    )
