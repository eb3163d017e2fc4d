"""Reservations of keys of the object store, and files of versions that it has lost.

The previous release reserves nothing: until all processes are of this release, the collection leaves alone what was
stored within its grace.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0040"
down_revision: str | None = "0039"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = "object_reservations"


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kept_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("removed_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f(f"pk_{TABLE}")),
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO zhub_system")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON {TABLE} TO zhub_app")
    op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY")
    tenant = "replace(current_setting('zhub.org_id', true), '-', '')"
    own = f"starts_with(key, 'bases/') OR starts_with(key, 't/' || nullif({tenant}, '') || '/')"
    op.execute(f"CREATE POLICY tenant ON {TABLE} TO zhub_app USING ({own}) WITH CHECK ({own})")
    op.execute(f"CREATE POLICY system ON {TABLE} TO zhub_system USING (true) WITH CHECK (true)")
    op.add_column("expert_versions", sa.Column("lost_files", postgresql.JSONB(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("expert_versions", "lost_files")
    op.drop_table(TABLE)
