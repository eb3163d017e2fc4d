"""People, service accounts, roles and invitations; keys that belong to somebody, are rotated, and know their pepper.

The previous release knows keys of projects alone: asked with a key of an organisation (``project_id`` NULL) it fails
until all processes are of this release. Suspended organisations and archived projects it serves as before.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0030"
down_revision: str | None = "0029"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ROLES = "'member', 'viewer', 'developer', 'admin', 'owner'"
PROJECT_ROLES = "'viewer', 'developer', 'admin'"
# What each table grants to the API's role; see the baseline.
TABLES: dict[str, str] = {
    "users": "SELECT, INSERT, UPDATE (name, email, role, issuer, subject, removed_at)",
    "project_members": "SELECT, INSERT, UPDATE (role, removed_at)",
    "invitations": "SELECT, INSERT, UPDATE (accepted_at, user_id, revoked_at)",
}
OPERATOR = "nullif(current_setting('zhub.operator', true), '') = 'on'"


def _presented(name: str) -> str:
    return f"nullif(current_setting('zhub.{name}', true), '')"


def upgrade() -> None:
    _create_tables()
    op.add_column("organizations", sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("projects", sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
    op.alter_column("api_keys", "project_id", nullable=True)
    op.add_column("api_keys", sa.Column("user_id", sa.Uuid(), nullable=True))
    op.add_column("api_keys", sa.Column("pepper", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("successor_id", sa.Uuid(), nullable=True))
    for column, other in {"user_id": "users", "successor_id": "api_keys"}.items():
        name = op.f(f"fk_api_keys_org_id_{column}")
        op.create_foreign_key(name, "api_keys", other, ["org_id", column], ["org_id", "id"])
    op.create_index("ix_api_keys_project", "api_keys", ["project_id", "id"])
    op.create_index("ix_api_keys_user", "api_keys", ["user_id"])
    op.create_index("ix_api_keys_successor", "api_keys", ["successor_id"])
    _grant()


def _create_tables() -> None:
    op.create_table(
        "users",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=True),
        sa.Column("issuer", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        *_own("users", {"project_id": "projects"}),
        sa.CheckConstraint("kind IN ('person', 'service_account')", name=op.f("ck_users_kind")),
        sa.CheckConstraint(f"role IN ({ROLES})", name=op.f("ck_users_role")),
        sa.CheckConstraint("(kind = 'person') = (email IS NOT NULL)", name=op.f("ck_users_person_has_email")),
        sa.CheckConstraint(
            "(kind = 'service_account') = (project_id IS NOT NULL)", name=op.f("ck_users_service_account_has_project")
        ),
        sa.CheckConstraint("(issuer IS NULL) = (subject IS NULL)", name=op.f("ck_users_identity")),
    )
    present = sa.text("removed_at IS NULL")
    op.create_index("uq_users_email", "users", ["org_id", "email"], unique=True, postgresql_where=present)
    op.create_index(
        "uq_users_identity", "users", ["issuer", "subject", "org_id"], unique=True, postgresql_where=present
    )
    op.create_index("ix_users_project", "users", ["project_id", "id"])
    op.create_table(
        "project_members",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        *_own("project_members", {"project_id": "projects", "user_id": "users"}),
        sa.UniqueConstraint(
            "org_id", "project_id", "user_id", name=op.f("uq_project_members_org_id_project_id_user_id")
        ),
        sa.CheckConstraint(f"role IN ({PROJECT_ROLES})", name=op.f("ck_project_members_role")),
    )
    op.create_index("ix_project_members_user", "project_members", ["user_id"])
    op.create_table(
        "invitations",
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("projects", postgresql.JSONB(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("invited_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        *_own("invitations", {"user_id": "users"}),
        sa.UniqueConstraint("token_hash", name=op.f("uq_invitations_token_hash")),
        sa.CheckConstraint(f"role IN ({ROLES})", name=op.f("ck_invitations_role")),
    )
    op.create_index("ix_invitations_email", "invitations", ["email"])
    op.create_index("ix_invitations_user", "invitations", ["user_id"])


def _grant() -> None:
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    for table, grants in TABLES.items():
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
        op.execute(f"GRANT {grants} ON {table} TO zhub_app")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
        op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")
    op.execute(
        "GRANT INSERT, UPDATE (name, hash, pepper, scopes, expires_at, revoked_at, successor_id) ON api_keys TO zhub_app"
    )
    op.execute("GRANT INSERT, UPDATE (archived_at) ON projects TO zhub_app")
    op.execute("GRANT INSERT, UPDATE (suspended_at) ON organizations TO zhub_app")
    # A token and a proved identity come before there is a tenant: each shows the rows that it fits.
    op.execute(
        "CREATE POLICY presented_token ON invitations FOR SELECT TO zhub_app "
        f"USING (token_hash = {_presented('invitation')})"
    )
    op.execute(
        f"CREATE POLICY proved_email ON invitations FOR SELECT TO zhub_app USING (email = {_presented('email')})"
    )
    op.execute(
        "CREATE POLICY proved_identity ON users FOR SELECT TO zhub_app "
        f"USING ((issuer = {_presented('issuer')} AND subject = {_presented('subject')}) OR email = {_presented('email')})"
    )
    # An operator sees organisations, and nothing that they own. A tenant makes none, and changes not even its own.
    op.execute(f"CREATE POLICY operator_sees ON organizations FOR SELECT TO zhub_app USING ({OPERATOR})")
    op.execute(
        f"CREATE POLICY operator_makes ON organizations AS RESTRICTIVE FOR INSERT TO zhub_app WITH CHECK ({OPERATOR})"
    )
    op.execute(
        "CREATE POLICY operator_changes ON organizations AS RESTRICTIVE FOR UPDATE TO zhub_app "
        f"USING (true) WITH CHECK ({OPERATOR})"
    )


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
    for policy in ("operator_sees", "operator_makes", "operator_changes"):
        op.execute(f"DROP POLICY {policy} ON organizations")
    op.execute("REVOKE INSERT, UPDATE (suspended_at) ON organizations FROM zhub_app")
    op.execute("REVOKE INSERT, UPDATE (archived_at) ON projects FROM zhub_app")
    op.execute(
        "REVOKE INSERT, UPDATE (name, hash, pepper, scopes, expires_at, revoked_at, successor_id) "
        "ON api_keys FROM zhub_app"
    )
    for index in ("ix_api_keys_successor", "ix_api_keys_user", "ix_api_keys_project"):
        op.drop_index(index, table_name="api_keys")
    for column in ("successor_id", "user_id"):
        op.drop_constraint(op.f(f"fk_api_keys_org_id_{column}"), "api_keys", type_="foreignkey")
    # The previous release would let a key that belongs to somebody do all that its scopes say, whatever their role.
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute("DELETE FROM api_keys WHERE project_id IS NULL")
    op.execute("UPDATE api_keys SET revoked_at = now() WHERE user_id IS NOT NULL AND revoked_at IS NULL")
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")
    for column in ("successor_id", "pepper", "user_id"):
        op.drop_column("api_keys", column)
    op.alter_column("api_keys", "project_id", nullable=False)
    op.drop_column("projects", "archived_at")
    op.drop_column("organizations", "suspended_at")
    for table in ("invitations", "project_members", "users"):
        op.drop_table(table)
