"""Who began a base model owns it: an organisation changes its own alone, and sees no other's private ones.

Base models of earlier releases have no owner. The previous release neither sets one nor knows of private base models, so
rows without one stay writable for it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TENANT = "nullif(current_setting('zhub.org_id', true), '')::uuid"
VISIBLE = f"NOT private OR owner_org_id = {TENANT}"
OWN = f"owner_org_id IS NULL OR owner_org_id = {TENANT}"


def upgrade() -> None:
    op.add_column("base_models", sa.Column("owner_org_id", sa.Uuid(), nullable=True))
    op.add_column("base_models", sa.Column("private", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_foreign_key(op.f("fk_base_models_owner_org_id"), "base_models", "organizations", ["owner_org_id"], ["id"])
    op.create_check_constraint(
        op.f("ck_base_models_private_has_owner"),
        "base_models",
        "NOT private OR (owner_org_id IS NOT NULL AND NOT is_default)",
    )
    op.drop_constraint(op.f("uq_base_models_name"), "base_models", type_="unique")
    op.create_index(
        "uq_base_models_name", "base_models", ["name"], unique=True, postgresql_where=sa.text("NOT private")
    )
    op.create_index(
        "uq_base_models_owner_name",
        "base_models",
        ["owner_org_id", "name"],
        unique=True,
        postgresql_where=sa.text("private"),
    )
    op.execute("GRANT UPDATE (owner_org_id, private) ON base_models TO zhub_app")
    op.execute("ALTER TABLE base_models ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE base_models FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY visible ON base_models FOR SELECT TO zhub_app USING ({VISIBLE})")
    op.execute(f"CREATE POLICY begin ON base_models FOR INSERT TO zhub_app WITH CHECK ({OWN})")
    op.execute(f"CREATE POLICY own ON base_models FOR UPDATE TO zhub_app USING ({OWN}) WITH CHECK ({OWN})")
    op.execute("CREATE POLICY system ON base_models TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    for policy in ("visible", "begin", "own", "system"):
        op.execute(f"DROP POLICY {policy} ON base_models")
    op.execute("ALTER TABLE base_models NO FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE base_models DISABLE ROW LEVEL SECURITY")
    op.drop_index("uq_base_models_owner_name", table_name="base_models")
    op.drop_index("uq_base_models_name", table_name="base_models")
    # Refused by PostgreSQL while two base models have one name: none is renamed silently.
    op.create_unique_constraint("uq_base_models_name", "base_models", ["name"])
    op.drop_constraint(op.f("ck_base_models_private_has_owner"), "base_models", type_="check")
    op.drop_constraint(op.f("fk_base_models_owner_org_id"), "base_models", type_="foreignkey")
    op.execute("REVOKE UPDATE (owner_org_id, private) ON base_models FROM zhub_app")
    op.drop_column("base_models", "private")
    op.drop_column("base_models", "owner_org_id")
