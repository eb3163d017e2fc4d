"""Exports of expert versions. The previous release has none, and does not know their jobs."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0039"
down_revision: str | None = "0038"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = "expert_exports"
REFERENCES = {"project_id": "projects", "version_id": "expert_versions", "job_id": "jobs"}


def upgrade() -> None:
    op.create_table(
        TABLE,
        *(sa.Column(column, sa.Uuid(), nullable=False) for column in REFERENCES),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("key_prefix", sa.Text(), nullable=True),
        sa.Column("files", postgresql.JSONB(), nullable=True),
        sa.Column("facts", postgresql.JSONB(), nullable=True),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{TABLE}_org_id")),
        *(
            sa.ForeignKeyConstraint(
                ["org_id", column], [f"{other}.org_id", f"{other}.id"], name=op.f(f"fk_{TABLE}_org_id_{column}")
            )
            for column, other in REFERENCES.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{TABLE}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{TABLE}_org_id_id")),
        sa.UniqueConstraint("job_id", name=op.f(f"uq_{TABLE}_job_id")),
    )
    op.create_index("ix_expert_exports_version", TABLE, ["version_id", "id"])
    op.create_index("ix_expert_exports_age", TABLE, ["created_at"], postgresql_where=sa.text("swept_at IS NULL"))
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO zhub_system")
    op.execute(f"GRANT SELECT, INSERT ON {TABLE} TO zhub_app")
    op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {TABLE} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {TABLE} TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table(TABLE)
