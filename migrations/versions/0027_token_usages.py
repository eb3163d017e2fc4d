"""Tokens of models that an organisation used, by hour, project, key, base and experts. The API's processes add to them."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0027"
down_revision: str | None = "0026"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
KEY = ("org_id", "hour", "project_id", "key_id", "base_model", "experts")


def upgrade() -> None:
    op.create_table(
        "token_usages",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("experts", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_token_usages_org_id")),
        *(
            sa.ForeignKeyConstraint(
                ["org_id", column], [f"{other}.org_id", f"{other}.id"], name=op.f(f"fk_token_usages_org_id_{column}")
            )
            for column, other in (("project_id", "projects"), ("key_id", "api_keys"))
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token_usages")),
        sa.UniqueConstraint("org_id", "id", name=op.f("uq_token_usages_org_id_id")),
        sa.UniqueConstraint(*KEY, name=op.f(f"uq_token_usages_{'_'.join(KEY)}")),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON token_usages TO zhub_system")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ({', '.join(COUNTS)}) ON token_usages TO zhub_app")
    op.execute("ALTER TABLE token_usages ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE token_usages FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON token_usages TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute("CREATE POLICY system ON token_usages TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table("token_usages")
