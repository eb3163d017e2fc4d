"""What other organisations use of an expert, metered for its owner."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0035"
down_revision: str | None = "0034"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = "shared_usages"
COUNTS = ("requests", "prompt_tokens", "completion_tokens")


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("user_org_id", sa.Uuid(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        *(sa.Column(count, sa.BigInteger(), nullable=False) for count in COUNTS),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{TABLE}_org_id")),
        sa.ForeignKeyConstraint(["user_org_id"], ["organizations.id"], name=op.f(f"fk_{TABLE}_user_org_id")),
        sa.ForeignKeyConstraint(
            ["org_id", "version_id"],
            ["expert_versions.org_id", "expert_versions.id"],
            name=op.f(f"fk_{TABLE}_org_id_version_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{TABLE}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{TABLE}_org_id_id")),
        sa.UniqueConstraint(
            "org_id", "hour", "version_id", "user_org_id", name=op.f(f"uq_{TABLE}_org_id_hour_version_id_user_org_id")
        ),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO zhub_system")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ({', '.join(COUNTS)}) ON {TABLE} TO zhub_app")
    op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {TABLE} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {TABLE} TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table(TABLE)
