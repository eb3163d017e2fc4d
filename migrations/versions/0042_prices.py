"""The price list, budgets in money, what a month has cost, and what organisations were told of their budgets."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0042"
down_revision: str | None = "0041"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ITEMS = "'worker_hours', 'input_tokens', 'cached_input_tokens', 'output_tokens', 'storage'"


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("id", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("item", "subject", "currency")),
        sa.Column("amount", sa.Numeric(), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(f"item IN ({ITEMS})", name=op.f("ck_prices_item")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_prices_amount")),
        sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f("ck_prices_currency")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
        sa.UniqueConstraint("item", "subject", "valid_from", name=op.f("uq_prices_item_subject_valid_from")),
    )
    op.execute("GRANT SELECT, INSERT ON prices TO zhub_system")  # nobody changes a price
    op.execute("GRANT SELECT ON prices TO zhub_app")
    op.add_column("quotas", sa.Column("monthly_budget", sa.Numeric(), nullable=True))
    _create(
        "month_costs",
        ("org_id", "month"),
        sa.Column("amount", sa.Numeric(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    _create(
        "budget_notices",
        ("org_id", "month", "unit", "percent", "budget"),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("budget", sa.Numeric(), nullable=False),
    )


def _create(name: str, key: tuple[str, ...], *columns: sa.Column[Any]) -> None:
    """A table of organisations' months, which tenants read and the system writes."""
    op.create_table(
        name,
        sa.Column("month", sa.Date(), nullable=False),
        *columns,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{name}_org_id")),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{name}_org_id_id")),
        sa.UniqueConstraint(*key, name=op.f(f"uq_{name}_{'_'.join(key)}")),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO zhub_system")
    op.execute(f"GRANT SELECT ON {name} TO zhub_app")
    op.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {name} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {name} TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table("budget_notices")
    op.drop_table("month_costs")
    op.drop_column("quotas", "monthly_budget")
    op.drop_table("prices")
