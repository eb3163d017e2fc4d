"""Until when a webhook's receiver asked to be left alone."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("webhook_endpoints", sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
    op.execute("GRANT UPDATE (not_before) ON webhook_endpoints TO zhub_app")


def downgrade() -> None:
    op.drop_column("webhook_endpoints", "not_before")
