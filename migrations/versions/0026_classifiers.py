"""Classifiers: what they learned to tell apart, and the releases whose strategy asks one.

The previous release reads a release with the strategy ``classifier`` as one that chooses by centroid.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0026"
down_revision: str | None = "0025"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE, COLUMN = "classified_experts", "classifier_version_id"
STRATEGY = "ck_release_versions_strategy"
REFERENCES = {"dataset_version_id": "dataset_versions", "version_id": "expert_versions"}


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("dataset_version_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
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
        sa.UniqueConstraint("dataset_version_id", "position", name=op.f(f"uq_{TABLE}_dataset_version_id_position")),
    )
    op.create_index(f"ix_{TABLE}_version", TABLE, ["version_id"])
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO zhub_system")
    op.execute(f"GRANT SELECT ON {TABLE} TO zhub_app")
    op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {TABLE} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {TABLE} TO zhub_system USING (true) WITH CHECK (true)")
    op.add_column("release_versions", sa.Column(COLUMN, sa.Uuid(), nullable=True))
    name = op.f(f"fk_release_versions_org_id_{COLUMN}")
    op.create_foreign_key(name, "release_versions", "expert_versions", ["org_id", COLUMN], ["org_id", "id"])
    op.create_index("ix_release_versions_classifier", "release_versions", [COLUMN])
    _strategy_is("centroid", "prompt", "classifier", "mixture")
    op.create_check_constraint(
        op.f("ck_release_versions_has_classifier"),
        "release_versions",
        f"strategy <> 'classifier' OR {COLUMN} IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_release_versions_has_classifier"), "release_versions")
    # The owner is fenced by row-level security as well, but for this. What pins a classifier chooses by centroid then.
    op.execute("ALTER TABLE release_versions NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE release_versions SET strategy = 'centroid' WHERE strategy = 'classifier'")
    op.execute("ALTER TABLE release_versions FORCE ROW LEVEL SECURITY")
    _strategy_is("centroid", "prompt", "mixture")
    op.drop_column("release_versions", COLUMN)
    op.drop_table(TABLE)


def _strategy_is(*strategies: str) -> None:
    op.drop_constraint(op.f(STRATEGY), "release_versions")
    listed = ", ".join(f"'{strategy}'" for strategy in strategies)
    op.create_check_constraint(op.f(STRATEGY), "release_versions", f"strategy IN ({listed})")
