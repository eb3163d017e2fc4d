"""Grants of experts to other organisations, the role of a guest, which reads what is shared and nothing else, and that
of a search, which reads what the catalogue is searched by.

The policies of a guest are its own, so those of tenants, and the plans of their statements, are what they were. The API
takes the roles for some statements of a transaction: see ``as_guest`` and ``as_search`` in ``zhub.database.sessions``.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0034"
down_revision: str | None = "0033"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TENANT = "nullif(current_setting('zhub.org_id', true), '')::uuid"
PROJECT = "nullif(current_setting('zhub.project_id', true), '')::uuid"
NAMED = "nullif(current_setting('zhub.named_organization', true), '')"
LISTED = "visibility IN ('granted', 'public')"
# What a guest sees of each table. Each condition is about its own table alone, or asks a table that the guest's policy
# holds for as well: a version is seen with its expert and its base, an alias with its version.
GUEST = {
    "expert_grants": f"grantee_org_id = {TENANT} AND (grantee_project_id IS NULL OR grantee_project_id = {PROJECT}) "
    "AND status = 'active' AND (expires_at IS NULL OR expires_at > now())",
    "base_models": "NOT private",
    "experts": f"org_id <> {TENANT} AND deleted_at IS NULL AND ({LISTED} "
    "OR EXISTS (SELECT FROM expert_grants g WHERE g.expert_id = experts.id))",
    "expert_versions": "deleted_at IS NULL "
    "AND EXISTS (SELECT FROM base_models b WHERE b.id = expert_versions.base_model_id) "
    f"AND EXISTS (SELECT FROM experts e WHERE e.id = expert_versions.expert_id AND (e.{LISTED} OR EXISTS (SELECT "
    "FROM expert_grants g WHERE g.expert_id = e.id AND (g.version_id IS NULL OR g.version_id = expert_versions.id))))",
    "aliases": "EXISTS (SELECT FROM expert_versions v WHERE v.id = aliases.version_id)",
    "projects": "EXISTS (SELECT FROM experts e WHERE e.org_id = projects.org_id AND e.project_id = projects.id)",
    "organizations": f"name = {NAMED} OR EXISTS (SELECT FROM expert_grants g WHERE g.org_id = organizations.id) "
    f"OR EXISTS (SELECT FROM experts e WHERE e.org_id = organizations.id AND e.{LISTED})",
    "card_revisions": "EXISTS (SELECT FROM experts e WHERE e.id = card_revisions.expert_id)",
    "catalogue_entries": "EXISTS (SELECT FROM expert_versions v WHERE v.id = catalogue_entries.version_id)",
    "version_metrics": "EXISTS (SELECT FROM expert_versions v WHERE v.id = version_metrics.version_id)",
}
# Behind a policy with a condition PostgreSQL uses no GIN index: their operators are not leakproof. So searches find ids
# in these two by a role without a condition, and what is shown of them is read by the rights of the tenant or the guest.
SEARCHED = ("catalogue_entries", "version_metrics")
# A key that may do everything else may also share what its project has.
ALL_SCOPES = (
    '["files:read", "files:write", "jobs:read", "jobs:write", "models:read", "models:write", "chat", '
    '"base_models:write", "webhooks:read", "webhooks:write", "project:write"]'
)


def upgrade() -> None:
    _create_table()
    op.create_index(
        "ix_experts_listed",
        "experts",
        ["org_id", "project_id"],
        postgresql_where=sa.text(LISTED),
    )
    for role in ("zhub_guest", "zhub_search"):
        op.execute(
            f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') "
            f"THEN CREATE ROLE {role} NOLOGIN; END IF; "
            # Taken by SET ROLE, never inherited: a session has the rights of such a role or its own, and not both.
            f"IF NOT pg_has_role('zhub_app', '{role}', 'SET') "
            f"THEN GRANT {role} TO zhub_app WITH INHERIT FALSE, SET TRUE; END IF; END $$"
        )
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
    for table in SEARCHED:
        op.execute(f"GRANT SELECT ON {table} TO zhub_search")
        op.execute(f"CREATE POLICY search ON {table} FOR SELECT TO zhub_search USING (true)")
    for table, condition in GUEST.items():
        op.execute(f"GRANT SELECT ON {table} TO zhub_guest")
        op.execute(f"CREATE POLICY guest ON {table} FOR SELECT TO zhub_guest USING ({condition})")
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute(f"""UPDATE api_keys SET scopes = scopes || '["grants:write"]' WHERE scopes @> '{ALL_SCOPES}'""")
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")


def _create_table() -> None:
    table = "expert_grants"
    references = {"expert_id": "experts", "version_id": "expert_versions"}
    op.create_table(
        table,
        sa.Column("expert_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        sa.Column("grantee_org_id", sa.Uuid(), nullable=False),
        sa.Column("grantee_project_id", sa.Uuid(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("grantee", sa.Text(), nullable=False),
        sa.Column("permission", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{table}_org_id")),
        sa.ForeignKeyConstraint(["grantee_org_id"], ["organizations.id"], name=op.f(f"fk_{table}_grantee_org_id")),
        *(
            sa.ForeignKeyConstraint(
                ["org_id", column], [f"{other}.org_id", f"{other}.id"], name=op.f(f"fk_{table}_org_id_{column}")
            )
            for column, other in references.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{table}_org_id_id")),
        sa.CheckConstraint("permission IN ('view', 'use', 'fork', 'manage')", name=op.f(f"ck_{table}_permission")),
        sa.CheckConstraint(
            "status IN ('requested', 'active', 'denied', 'revoked', 'withdrawn')", name=op.f(f"ck_{table}_status")
        ),
        sa.CheckConstraint("grantee_org_id <> org_id", name=op.f(f"ck_{table}_other")),
    )
    op.create_index(
        "uq_expert_grants_open",
        table,
        ["expert_id", "grantee_org_id", "grantee_project_id", "status"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("status IN ('requested', 'active')"),
    )
    op.create_index("ix_expert_grants_given", table, ["org_id", "id"])
    op.create_index("ix_expert_grants_received", table, ["grantee_org_id", "id"])
    op.create_index("ix_expert_grants_version", table, ["version_id"])
    given, received = f"org_id = {TENANT}", f"grantee_org_id = {TENANT}"
    changed = "permission, status, message, decided_by, decided_at, expires_at, ended_at"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ({changed}) ON {table} TO zhub_app")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({given}) WITH CHECK ({given})")
    op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")
    # Who gets a grant sees it, asks for one, and gives one up: it never makes one active.
    op.execute(f"CREATE POLICY received ON {table} FOR SELECT TO zhub_app USING ({received})")
    op.execute(f"CREATE POLICY ask ON {table} FOR INSERT TO zhub_app WITH CHECK ({received} AND status = 'requested')")
    op.execute(
        f"CREATE POLICY give_up ON {table} FOR UPDATE TO zhub_app USING ({received} AND status IN ('requested', 'active'))"
        f" WITH CHECK ({received} AND status = 'withdrawn')"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE api_keys SET scopes = scopes - 'grants:write'")
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")
    for table in SEARCHED:
        op.execute(f"DROP POLICY search ON {table}")
        op.execute(f"REVOKE SELECT ON {table} FROM zhub_search")
    for table in reversed(GUEST):
        op.execute(f"DROP POLICY guest ON {table}")
        op.execute(f"REVOKE SELECT ON {table} FROM zhub_guest")
    op.drop_index("ix_experts_listed", table_name="experts")
    op.drop_table("expert_grants")
