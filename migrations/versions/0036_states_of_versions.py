"""States of expert versions, and triggers that refuse to change what was published.

The previous release knows no state: it shows and serves a yanked version until its last process has ended. It changes
nothing that is frozen here.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0036"
down_revision: str | None = "0035"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

STATES = ("deprecated_at", "yanked_at", "successor_id", "state_reason", "damage")

FROZEN = {
    "expert_versions": (
        "id", "org_id", "created_at", "expert_id", "base_model_id", "version", "job_id", "fence", "digest", "manifest",
        "key_prefix", "size_bytes", "score",
    ),
    "release_versions": (
        "id", "org_id", "created_at", "release_id", "base_model_id", "version", "strategy", "classifier_version_id",
        "digest", "description", "by",
    ),
    "release_experts": (
        "id", "org_id", "created_at", "release_version_id", "position", "version_id", "weight", "description",
    ),
    "dataset_versions": (
        "id", "org_id", "created_at", "project_id", "dataset_id", "version", "sha256", "size_bytes", "key",
    ),
    "alias_moves": (
        "id", "org_id", "created_at", "alias_id", "position", "from_version_id", "to_version_id",
        "from_release_version_id", "to_release_version_id", "canary_version_id", "canary_share", "by", "reason",
    ),
    "expert_changes": ("id", "org_id", "created_at", "expert_id", "version_id", "by", "changes"),
}  # fmt: skip
"""Of each table, what is never changed once it is written. Its rows are deleted with their organisation alone."""

REFUSE = """
CREATE FUNCTION zhub_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('zhub.erasing', true) = OLD.org_id::text THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'row % of % was published and is never %',
        OLD.id, TG_TABLE_NAME, CASE TG_OP WHEN 'DELETE' THEN 'deleted' ELSE 'changed' END
        USING ERRCODE = 'integrity_constraint_violation',
              HINT = 'Publish another version. Rows go with their organisation alone, which `zhub db erase` removes.';
END $$
"""


def upgrade() -> None:
    for column in ("deprecated_at", "yanked_at"):
        op.add_column("expert_versions", sa.Column(column, sa.DateTime(timezone=True), nullable=True))
    op.add_column("expert_versions", sa.Column("successor_id", sa.Uuid(), nullable=True))
    for column in ("state_reason", "damage"):
        op.add_column("expert_versions", sa.Column(column, sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_expert_versions_org_id_successor_id"),
        "expert_versions",
        "expert_versions",
        ["org_id", "successor_id"],
        ["org_id", "id"],
    )
    op.create_index(
        "ix_expert_versions_successor",
        "expert_versions",
        ["successor_id"],
        postgresql_where=sa.text("successor_id IS NOT NULL"),
    )
    op.create_index(
        "ix_expert_versions_parent",
        "expert_versions",
        ["org_id", sa.text("(manifest ->> 'parent_digest')")],
        postgresql_where=sa.text("(manifest ->> 'parent_digest') IS NOT NULL"),
    )
    op.create_index(
        "ix_expert_versions_mixed",
        "expert_versions",
        [sa.text("((manifest -> 'mixture'::text) -> 'experts'::text)")],
        postgresql_using="gin",
        postgresql_where=sa.text("(manifest -> 'mixture') IS NOT NULL"),
    )
    op.execute(f"GRANT UPDATE ({', '.join(STATES)}) ON expert_versions TO zhub_app")
    op.execute(REFUSE)
    for table, columns in FROZEN.items():
        before, after = (", ".join(f"{row}.{column}" for column in columns) for row in ("OLD", "NEW"))
        op.execute(
            f"CREATE TRIGGER frozen BEFORE UPDATE ON {table} FOR EACH ROW "
            f"WHEN (({before}) IS DISTINCT FROM ({after})) EXECUTE FUNCTION zhub_refuse_change()"
        )
        op.execute(f"CREATE TRIGGER kept BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION zhub_refuse_change()")


def downgrade() -> None:
    for table in FROZEN:
        op.execute(f"DROP TRIGGER frozen ON {table}")
        op.execute(f"DROP TRIGGER kept ON {table}")
    op.execute("DROP FUNCTION zhub_refuse_change()")
    op.execute(f"REVOKE UPDATE ({', '.join(STATES)}) ON expert_versions FROM zhub_app")
    for index in ("ix_expert_versions_mixed", "ix_expert_versions_parent"):
        op.drop_index(index, table_name="expert_versions")
    op.drop_index("ix_expert_versions_successor", table_name="expert_versions")
    op.drop_constraint(op.f("fk_expert_versions_org_id_successor_id"), "expert_versions")
    for column in STATES:
        op.drop_column("expert_versions", column)
