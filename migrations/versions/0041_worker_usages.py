"""Worker time and stored bytes by day, and who asked for a job.

What the previous release charges while it still runs is in ``usages`` and ``month_usages`` alone.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0041"
down_revision: str | None = "0040"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

WORKERS = ("org_id", "day", "project_id", "key_id", "cluster", "kind", "expert", "base_model")
BYTES = ("org_id", "day", "project_id")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("asked_by", sa.Uuid(), nullable=True))
    _create(
        "worker_usages",
        WORKERS,
        {"project_id": "projects", "key_id": "api_keys"},
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("cluster", "kind", "expert", "base_model")),
        sa.Column("worker_seconds", sa.Float(), nullable=False),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=False),
    )
    _create(
        "stored_usages",
        BYTES,
        {"project_id": "projects"},
        sa.Column("project_id", sa.Uuid(), nullable=True),
        sa.Column("byte_hours", sa.Numeric(), nullable=False),
        sa.Column("sampled_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_stored_usages_sampled_at", "stored_usages", ["sampled_at"])


def _create(name: str, key: tuple[str, ...], references: dict[str, str], *columns: sa.Column[Any]) -> None:
    """A table with a row for each day and ``key``, which tenants read and the system writes."""
    op.create_table(
        name,
        sa.Column("day", sa.Date(), nullable=False),
        *columns,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f(f"fk_{name}_org_id")),
        *(
            sa.ForeignKeyConstraint(
                ["org_id", column], [f"{other}.org_id", f"{other}.id"], name=op.f(f"fk_{name}_org_id_{column}")
            )
            for column, other in references.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint("org_id", "id", name=op.f(f"uq_{name}_org_id_id")),
        sa.UniqueConstraint(*key, name=f"uq_{name}_day", postgresql_nulls_not_distinct=True),
    )
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO zhub_system")
    op.execute(f"GRANT SELECT ON {name} TO zhub_app")
    op.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {name} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {name} TO zhub_system USING (true) WITH CHECK (true)")


def downgrade() -> None:
    op.drop_table("stored_usages")
    op.drop_table("worker_usages")
    op.drop_column("jobs", "asked_by")
