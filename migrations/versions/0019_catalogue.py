"""What people say of experts and versions, their archive and deletion, former names, and aliases that were removed.

The previous release knows neither archive nor deletion: it shows and serves what this one has put away until its last
process has ended.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

SWEPT = "deleted_at IS NOT NULL AND swept_at IS NULL"
SAID = ("description", "tags", "archived_at", "deleted_at")


def upgrade() -> None:
    for table in ("experts", "expert_versions"):
        op.add_column(table, sa.Column("description", sa.Text(), nullable=True))
        op.add_column(table, sa.Column("tags", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False))
        op.add_column(table, sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
        op.add_column(table, sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
        op.execute(f"GRANT UPDATE ({', '.join(SAID)}) ON {table} TO zhub_app")
    op.add_column(
        "experts", sa.Column("former_names", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False)
    )
    op.execute("GRANT UPDATE (name, former_names) ON experts TO zhub_app")
    op.add_column("expert_versions", sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "expert_versions", sa.Column("score", sa.Float(), server_default=sa.text("'-Infinity'"), nullable=False)
    )
    op.execute(
        """
        UPDATE expert_versions v SET score = t.score
          FROM (SELECT id, (jsonb_path_query_first(
                       manifest, '$.evaluations[*] ? (@.split == "test").expert.mean') #>> '{}')::float8 AS score
                  FROM expert_versions) t
         WHERE t.id = v.id AND t.score IS NOT NULL
        """
    )
    op.create_index("ix_expert_versions_digest", "expert_versions", ["org_id", "digest"])
    op.create_index("ix_expert_versions_age", "expert_versions", ["expert_id", "created_at", "version", "id"])
    op.create_index("ix_expert_versions_score", "expert_versions", ["expert_id", "score", "version", "id"])
    op.create_index("ix_expert_versions_deleted", "expert_versions", ["deleted_at"], postgresql_where=sa.text(SWEPT))
    op.create_index("ix_aliases_version", "aliases", ["version_id"])
    op.alter_column("aliases", "version_id", nullable=True)
    op.alter_column("alias_moves", "to_version_id", nullable=True)
    _create_changes()


def _create_changes() -> None:
    op.create_table(
        "expert_changes",
        sa.Column("expert_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("changes", postgresql.JSONB(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["org_id", "expert_id"], ["experts.org_id", "experts.id"], name=op.f("fk_expert_changes_org_id_expert_id")
        ),
        sa.ForeignKeyConstraint(
            ["org_id", "version_id"],
            ["expert_versions.org_id", "expert_versions.id"],
            name=op.f("fk_expert_changes_org_id_version_id"),
        ),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_expert_changes_org_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_expert_changes")),
        sa.UniqueConstraint("org_id", "id", name=op.f("uq_expert_changes_org_id_id")),
    )
    op.create_index("ix_expert_changes_expert", "expert_changes", ["expert_id", "id"])
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON expert_changes TO zhub_system")
    op.execute("GRANT SELECT, INSERT ON expert_changes TO zhub_app")
    op.execute("ALTER TABLE expert_changes ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE expert_changes FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON expert_changes TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute("CREATE POLICY system ON expert_changes TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table("expert_changes")
    # Refused by PostgreSQL while an alias is removed: it would have to point to something again.
    op.alter_column("alias_moves", "to_version_id", nullable=False)
    op.alter_column("aliases", "version_id", nullable=False)
    op.drop_index("ix_aliases_version", table_name="aliases")
    op.execute("REVOKE UPDATE (name, former_names) ON experts FROM zhub_app")
    op.drop_column("experts", "former_names")
    for column in ("score", "swept_at"):
        op.drop_column("expert_versions", column)
    for table in ("experts", "expert_versions"):
        op.execute(f"REVOKE UPDATE ({', '.join(SAID)}) ON {table} FROM zhub_app")
        for column in SAID:
            op.drop_column(table, column)
    for index in ("ix_expert_versions_digest", "ix_expert_versions_age"):
        op.drop_index(index, table_name="expert_versions")
