"""Trials of release versions that answer beside the one that an alias points to. The previous release has no shadows."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0029"
down_revision: str | None = "0028"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = "shadow_trials"
REFERENCES = {"alias_id": "aliases", "live_version_id": "release_versions", "shadow_version_id": "release_versions"}
COUNTS = ("answered", "failed", "left_out", "same_experts", "comparable", "alike")
TOTALS = {"live_tokens": sa.BigInteger(), "shadow_tokens": sa.BigInteger()}
SECONDS = ("live_seconds", "shadow_seconds")
# Of the API: it begins and ends trials, and adds what their shadows did.
CHANGED = ("ended_at", *COUNTS, *TOTALS, *SECONDS)


def upgrade() -> None:
    op.create_table(
        TABLE,
        *(sa.Column(column, sa.Uuid(), nullable=False) for column in REFERENCES),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        *(sa.Column(column, sa.Integer(), server_default="0", nullable=False) for column in COUNTS),
        *(sa.Column(column, kind, server_default="0", nullable=False) for column, kind in TOTALS.items()),
        *(sa.Column(column, sa.Float(), server_default="0", nullable=False) for column in SECONDS),
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
        sa.CheckConstraint("share > 0 AND share <= 1", name=op.f(f"ck_{TABLE}_share")),
    )
    op.create_index(
        "uq_shadow_trials_running", TABLE, ["alias_id"], unique=True, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index("ix_shadow_trials_alias", TABLE, ["alias_id", "id"])
    op.create_index("ix_shadow_trials_shadow", TABLE, ["shadow_version_id"])
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO zhub_system")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ({', '.join(CHANGED)}) ON {TABLE} TO zhub_app")
    op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {TABLE} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {TABLE} TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table(TABLE)
