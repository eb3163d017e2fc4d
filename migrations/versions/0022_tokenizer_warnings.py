"""A count of tokens says where the base's tokenizer does not know the language of the rows."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0022"
down_revision: str | None = "0020"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("token_counts", sa.Column("tokenizer_warning", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("token_counts", "tokenizer_warning")
