"""Aliases that need a second person's approval, and the requests for it.

The previous release knows no protection: it moves a protected alias until its last process has ended.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0037"
down_revision: str | None = "0036"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

REFERENCES = {
    "alias_protections": {"project_id": "projects"},
    "alias_requests": {
        "project_id": "projects",
        "expert_id": "experts",
        "release_id": "releases",
        "version_id": "expert_versions",
        "release_version_id": "release_versions",
        "expected_version_id": "expert_versions",
        "expected_release_version_id": "release_versions",
        "promotion_id": "promotions",
    },
}
DECIDED = ("decision", "decided_at", "decided_by", "decided_because")


def _create(
    table: str, *columns: sa.Column[object], checks: tuple[sa.UniqueConstraint | sa.CheckConstraint, ...] = ()
) -> None:
    references = REFERENCES[table]
    op.create_table(
        table,
        *(sa.Column(column, sa.Uuid(), nullable=column != "project_id") for column in references),
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
        *checks,
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")


def upgrade() -> None:
    _create(
        "alias_protections",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("request_hours", sa.Integer(), server_default="168", nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        checks=(
            sa.UniqueConstraint("project_id", "name", name=op.f("uq_alias_protections_project_id_name")),
            sa.CheckConstraint("request_hours > 0", name=op.f("ck_alias_protections_request_hours")),
        ),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE (by, request_hours, ended_at) ON alias_protections TO zhub_app")
    _create(
        "alias_requests",
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("share", sa.Float(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_because", sa.Text(), nullable=True),
        checks=(
            sa.CheckConstraint("num_nonnulls(expert_id, release_id) = 1", name=op.f("ck_alias_requests_one_owner")),
            sa.CheckConstraint(
                "num_nonnulls(version_id, release_version_id) = 1", name=op.f("ck_alias_requests_one_version")
            ),
            sa.CheckConstraint(
                "decision IN ('approved', 'rejected', 'withdrawn')", name=op.f("ck_alias_requests_decision")
            ),
            sa.CheckConstraint("(decision IS NULL) = (decided_at IS NULL)", name=op.f("ck_alias_requests_decided")),
        ),
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE ({', '.join(DECIDED)}) ON alias_requests TO zhub_app")
    op.create_index("ix_alias_requests_project", "alias_requests", ["org_id", "project_id", "id"])
    op.create_index("ix_alias_requests_promotion", "alias_requests", ["promotion_id"])
    op.add_column("promotions", sa.Column("by", sa.Text(), nullable=True))
    op.execute("GRANT UPDATE (promoted) ON promotions TO zhub_app")


def downgrade() -> None:
    op.execute("REVOKE UPDATE (promoted) ON promotions FROM zhub_app")
    op.drop_column("promotions", "by")
    op.drop_table("alias_requests")
    op.drop_table("alias_protections")
