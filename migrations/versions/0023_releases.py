"""Releases: a strategy and the expert versions that it pins; aliases point to them as to expert versions.

The previous release reads aliases by their expert, so those of releases are not there for it.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0023"
down_revision: str | None = "0022"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What each table grants to the API's role; see the baseline.
TABLES: dict[str, str] = {
    "releases": "SELECT, INSERT, UPDATE (last_version)",
    "release_versions": "SELECT, INSERT, UPDATE (deleted_at)",
    "release_experts": "SELECT, INSERT",
}
CHECKS = {
    "one_owner": "num_nonnulls(expert_id, release_id) = 1",
    "version_of_expert": "version_id IS NULL OR expert_id IS NOT NULL",
    "version_of_release": "release_version_id IS NULL OR release_id IS NOT NULL",
    "canary": "(canary_version_id IS NULL) = (canary_share IS NULL)",
    "canary_beside": "canary_version_id IS NULL OR release_version_id IS NOT NULL",
    "canary_share": "canary_share > 0 AND canary_share < 1",
}
# The new columns that refer to other rows, by table.
REFERENCES = {
    "aliases": {
        "release_id": "releases",
        "release_version_id": "release_versions",
        "canary_version_id": "release_versions",
    },
    "alias_moves": {
        "from_release_version_id": "release_versions",
        "to_release_version_id": "release_versions",
        "canary_version_id": "release_versions",
    },
}


def upgrade() -> None:
    _create_tables()
    for table, references in REFERENCES.items():
        for column, other in references.items():
            op.add_column(table, sa.Column(column, sa.Uuid(), nullable=True))
            name = op.f(f"fk_{table}_org_id_{column}")
            op.create_foreign_key(name, table, other, ["org_id", column], ["org_id", "id"])
        op.add_column(table, sa.Column("canary_share", sa.Float(), nullable=True))
    op.alter_column("aliases", "expert_id", nullable=True)
    op.create_unique_constraint(op.f("uq_aliases_release_id_name"), "aliases", ["release_id", "name"])
    op.create_index("ix_aliases_release_version", "aliases", ["release_version_id"])
    op.create_index("ix_aliases_canary", "aliases", ["canary_version_id"])
    for check, condition in CHECKS.items():
        op.create_check_constraint(op.f(f"ck_aliases_{check}"), "aliases", condition)


def _create_tables() -> None:
    op.create_table(
        "releases",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        *_own("releases", {"project_id": "projects"}),
        sa.UniqueConstraint("org_id", "project_id", "name", name=op.f("uq_releases_org_id_project_id_name")),
    )
    op.create_table(
        "release_versions",
        sa.Column("release_id", sa.Uuid(), nullable=False),
        sa.Column("base_model_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        *_own("release_versions", {"release_id": "releases"}),
        sa.ForeignKeyConstraint(["base_model_id"], ["base_models.id"], name=op.f("fk_release_versions_base_model_id")),
        sa.UniqueConstraint("release_id", "version", name=op.f("uq_release_versions_release_id_version")),
        sa.CheckConstraint("strategy IN ('centroid', 'prompt', 'mixture')", name=op.f("ck_release_versions_strategy")),
    )
    op.create_table(
        "release_experts",
        sa.Column("release_version_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        *_own("release_experts", {"release_version_id": "release_versions", "version_id": "expert_versions"}),
        sa.UniqueConstraint(
            "release_version_id", "position", name=op.f("uq_release_experts_release_version_id_position")
        ),
    )
    op.create_index("ix_release_experts_version", "release_experts", ["version_id"])
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    for table, grants in TABLES.items():
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
        op.execute(f"GRANT {grants} ON {table} TO zhub_app")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
        op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")


def _own(table: str, references: dict[str, str]) -> "list[sa.Column[Any] | sa.Constraint]":
    """What every tenant-owned table has, and its references within the tenant, by column."""
    return [
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
    ]


def downgrade() -> None:
    for check in CHECKS:
        op.drop_constraint(op.f(f"ck_aliases_{check}"), "aliases")
    # The owner is fenced by row-level security as well, but for this.
    for table in ("alias_moves", "aliases"):
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    op.execute("DELETE FROM alias_moves m USING aliases a WHERE a.id = m.alias_id AND a.release_id IS NOT NULL")
    op.execute("DELETE FROM aliases WHERE release_id IS NOT NULL")
    for table in ("alias_moves", "aliases"):
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.alter_column("aliases", "expert_id", nullable=False)
    for table, references in REFERENCES.items():
        for column in (*references, "canary_share"):
            op.drop_column(table, column)
    for table in ("release_experts", "release_versions", "releases"):
        op.drop_table(table)
