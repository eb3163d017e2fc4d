"""Signing keys of organisations, signatures of versions, and proofs of what was erased.

The previous release signs nothing; schedulers of this one sign what it publishes.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0038"
down_revision: str | None = "0037"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

FROZEN = {
    "attestations": ("id", "org_id", "created_at", "version_id", "signing_key_id", "envelope", "key", "sha256"),
    "signing_keys": ("id", "org_id", "created_at", "rotation", "key_id", "public_key"),
}


def _create(table: str, references: dict[str, str], *columns: sa.Column[object], unique: str) -> None:
    op.create_table(
        table,
        *(sa.Column(column, sa.Uuid(), nullable=False) for column in references),
        *columns,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{table}_org_id")),
        *(
            sa.ForeignKeyConstraint(
                ["org_id", column], [f"{other}.org_id", f"{other}.id"], name=op.f(f"fk_{table}_org_id_{column}")
            )
            for column, other in references.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{table}_org_id_id")),
        sa.UniqueConstraint(*unique.split(), name=op.f(f"uq_{table}_{unique.replace(' ', '_')}")),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")
    columns_of = FROZEN[table]
    before, after = (", ".join(f"{row}.{column}" for column in columns_of) for row in ("OLD", "NEW"))
    op.execute(
        f"CREATE TRIGGER frozen BEFORE UPDATE ON {table} FOR EACH ROW "
        f"WHEN (({before}) IS DISTINCT FROM ({after})) EXECUTE FUNCTION zhub_refuse_change()"
    )
    op.execute(f"CREATE TRIGGER kept BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION zhub_refuse_change()")


def upgrade() -> None:
    _create(
        "signing_keys",
        {},
        sa.Column("rotation", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        unique="org_id rotation",
    )
    op.execute("GRANT SELECT, INSERT, UPDATE (retired_at) ON signing_keys TO zhub_app")
    _create(
        "attestations",
        {"version_id": "expert_versions", "signing_key_id": "signing_keys"},
        sa.Column("envelope", postgresql.JSONB(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        unique="version_id",
    )
    op.execute("GRANT SELECT ON attestations TO zhub_app")
    op.add_column("expert_versions", sa.Column("signed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_expert_versions_unsigned",
        "expert_versions",
        ["id"],
        postgresql_where=sa.text("signed_at IS NULL AND swept_at IS NULL AND damage IS NULL"),
    )
    op.create_table(
        "erasures",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("erased_org_id", sa.Uuid(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counts", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("objects", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("digest", sa.Text(), server_default="", nullable=False),
        sa.Column("proof", postgresql.JSONB(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
        sa.UniqueConstraint("erased_org_id", name=op.f("uq_erasures_erased_org_id")),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE ON erasures TO zhub_system")


def downgrade() -> None:
    op.drop_index("ix_expert_versions_unsigned", table_name="expert_versions")
    op.drop_column("expert_versions", "signed_at")
    for table in ("erasures", "attestations", "signing_keys"):
        op.drop_table(table)
