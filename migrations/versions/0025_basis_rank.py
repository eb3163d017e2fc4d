"""The rank to which a base model is decomposed. The previous release leaves it null: all directions."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0025"
down_revision: str | None = "0024"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("base_models", sa.Column("rank", sa.Integer(), nullable=True))
    op.create_check_constraint(op.f("ck_base_models_rank"), "base_models", "rank > 0")
    op.execute("GRANT UPDATE (rank) ON base_models TO zhub_app")


def downgrade() -> None:
    op.drop_column("base_models", "rank")
