"""Evaluations and promotions of release versions, beside those of expert versions.

The previous release takes the evaluation of a release for one of its base: while both run, it may refuse to measure the
base on a suite that a release was measured on.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0024"
down_revision: str | None = "0023"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

SUBJECT = "uq_evaluations_subject_suite"
COLUMN = "release_version_id"
TABLES = ("evaluations", "promotions")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column(COLUMN, sa.Uuid(), nullable=True))
        name = op.f(f"fk_{table}_org_id_{COLUMN}")
        op.create_foreign_key(name, table, "release_versions", ["org_id", COLUMN], ["org_id", "id"])
        op.create_check_constraint(op.f(f"ck_{table}_one_version"), table, f"num_nonnulls(version_id, {COLUMN}) <= 1")
    _subject_is(["project_id", "base_model_id", "version_id", COLUMN, "suite_digest"])


def downgrade() -> None:
    # The owner is fenced by row-level security as well, but for this.
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"DELETE FROM {table} WHERE {COLUMN} IS NOT NULL")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    _subject_is(["project_id", "base_model_id", "version_id", "suite_digest"])
    for table in TABLES:
        op.drop_column(table, COLUMN)


def _subject_is(columns: list[str]) -> None:
    op.drop_constraint(SUBJECT, "evaluations")
    op.create_unique_constraint(SUBJECT, "evaluations", columns, postgresql_nulls_not_distinct=True)
