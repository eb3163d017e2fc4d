"""The audit log: rows that are inserted and read, and that the database lets nobody change, or delete one by one."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0031"
down_revision: str | None = "0030"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLE = "audit_events"
REFERENCES = {"project_id": "projects", "key_id": "api_keys", "user_id": "users"}


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("project_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("before", postgresql.JSONB(), nullable=True),
        sa.Column("after", postgresql.JSONB(), nullable=True),
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
    )
    op.create_index("ix_audit_events_target", TABLE, ["org_id", "target", "id"])
    op.create_index("ix_audit_events_action", TABLE, ["org_id", "action", "id"])
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    op.execute(f"GRANT SELECT, INSERT ON {TABLE} TO zhub_app")
    op.execute(f"GRANT SELECT, INSERT, DELETE ON {TABLE} TO zhub_system")
    op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {TABLE} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
    op.execute(f"CREATE POLICY system ON {TABLE} TO zhub_system USING (true) WITH CHECK (true)")
    # What the grants forbid to others, this forbids to the owner as well, who can drop it in plain sight alone. Rows go
    # with their organisation, whose erasure leaves a proof.
    op.execute(
        "CREATE FUNCTION refuse_change_of_audit_events() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF TG_OP = 'DELETE' THEN "
        "IF current_setting('zhub.erasing', true) = OLD.org_id::text THEN RETURN OLD; END IF; END IF; "
        "RAISE insufficient_privilege USING MESSAGE = 'rows of the audit log are neither changed nor deleted'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER unchanged AFTER UPDATE OR DELETE ON {TABLE} "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change_of_audit_events()"
    )
    op.execute(
        f"CREATE TRIGGER untruncated BEFORE TRUNCATE ON {TABLE} "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit_events()"
    )


def downgrade() -> None:
    op.drop_table(TABLE)
    op.execute("DROP FUNCTION refuse_change_of_audit_events()")
