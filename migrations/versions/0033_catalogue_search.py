"""What the catalogue is searched by: an entry for each version and its metrics, kept by triggers; who may see an expert,
and its card.

Triggers and not processes keep the entries: so they are right while the previous release still writes, and whoever
writes. They run as who writes, within its tenant. Entries are locked last, in the order of their ids, and read only
then: of two transactions that change an expert and an alias of it at once, the second writes what both have done.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0033"
down_revision: str | None = "0031"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

VISIBILITIES = "'private', 'organization', 'granted', 'public'"
# What each table grants to the API's role; see the baseline.
TABLES = {
    "catalogue_entries": "SELECT, INSERT, UPDATE",
    "version_metrics": "SELECT, INSERT, UPDATE",
    "card_revisions": "SELECT, INSERT",
}
READ = ("experts", "expert_versions", "evaluations", "projects", "organizations", "feedback", "token_usages")
CARD_CHARACTERS = 8000  # of a card that are searched

# Writes the entries of these versions. A card is found by the newest version and by those that an alias points to.
WRITE = f"""
CREATE FUNCTION catalogue_write(written uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM catalogue_entries c WHERE c.version_id = ANY(written) ORDER BY c.version_id FOR UPDATE;
  INSERT INTO catalogue_entries AS old (id, org_id, project_id, expert_id, version_id, audience, listed, archived, terms,
                                        document, created_at, updated_at)
  SELECT gen_random_uuid(), v.org_id, e.project_id, v.expert_id, v.id,
         CASE WHEN v.deleted_at IS NOT NULL OR e.deleted_at IS NOT NULL THEN NULL
              WHEN e.visibility = 'private' THEN e.project_id ELSE e.org_id END,
         v.deleted_at IS NULL AND e.deleted_at IS NULL AND NOT b.private AND e.visibility IN ('granted', 'public'),
         v.archived_at IS NOT NULL OR e.archived_at IS NOT NULL,
         ARRAY['base:' || b.name, 'visibility:' || e.visibility,
               'adapter:' || coalesce(v.manifest #>> '{{hyperparameters,adapter}}', 'svf')]
         || CASE WHEN b.private THEN ARRAY['private:base'] ELSE ARRAY[]::text[] END
         || ARRAY(SELECT 'basis:' || f FROM (SELECT v.manifest ->> 'basis_fingerprint' AS f) s WHERE f IS NOT NULL)
         || ARRAY(SELECT 'dataset:' || d FROM (SELECT v.manifest ->> 'dataset_digest' AS d) s WHERE d IS NOT NULL)
         || ARRAY(SELECT 'tag:' || t.key FROM jsonb_each_text(e.tags || v.tags) t)
         || ARRAY(SELECT 'tag:' || t.key || '=' || t.value FROM jsonb_each_text(e.tags || v.tags) t)
         || ARRAY(SELECT 'alias:' || a.name FROM aliases a WHERE a.version_id = v.id)
         || ARRAY(SELECT DISTINCT 'suite:' || m.suite FROM version_metrics m WHERE m.version_id = v.id),
         to_tsvector('simple', concat_ws(' ', e.name, e.former_names::text, e.description, v.description,
                     (SELECT string_agg(t.value, ' ') FROM jsonb_each_text(e.tags || v.tags) t),
                     CASE WHEN v.version = e.last_version OR EXISTS (SELECT FROM aliases a WHERE a.version_id = v.id)
                          THEN (SELECT left(r.text, {CARD_CHARACTERS}) FROM card_revisions r
                                 WHERE r.expert_id = e.id ORDER BY r.revision DESC LIMIT 1) END)),
         v.created_at, clock_timestamp()
    FROM expert_versions v JOIN experts e ON e.id = v.expert_id JOIN base_models b ON b.id = v.base_model_id
   WHERE v.id = ANY(written)
      ON CONFLICT (version_id) DO UPDATE
     SET audience = excluded.audience, listed = excluded.listed, archived = excluded.archived, terms = excluded.terms,
         document = excluded.document, updated_at = excluded.updated_at;
  UPDATE version_metrics m SET audience = c.audience, listed = c.listed FROM catalogue_entries c
   WHERE c.version_id = ANY(written) AND m.version_id = c.version_id
     AND (m.audience, m.listed) IS DISTINCT FROM (c.audience, c.listed);
END $$
"""
# Of each suite what a training measured: base and expert on the same rows. Experts are asked for, which the tables'
# owner does not see: what it copies in bulk from another database writes nothing here, and brings its own entries.
MEASURE_VERSION = """
CREATE FUNCTION catalogue_measure_version(measured uuid[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO version_metrics (id, org_id, expert_id, version_id, listed, suite, metric, value, low, high, n)
  SELECT gen_random_uuid(), v.org_id, v.expert_id, v.id, false, s.suite, m.metric, m.value, m.low, m.high, s.n
    FROM expert_versions v JOIN experts e ON e.id = v.expert_id,
         LATERAL (SELECT DISTINCT ON (x ->> 'split') x ->> 'split' AS suite, x -> 'expert' AS expert, x -> 'base' AS base,
                         (x #>> '{expert,n}')::bigint AS n
                    FROM jsonb_array_elements(v.manifest -> 'evaluations') x) s,
         LATERAL (VALUES ('accuracy', (s.expert ->> 'mean')::float8, (s.expert ->> 'low')::float8,
                          (s.expert ->> 'high')::float8),
                         ('base_accuracy', (s.base ->> 'mean')::float8, (s.base ->> 'low')::float8,
                          (s.base ->> 'high')::float8),
                         ('gain', (s.expert ->> 'mean')::float8 - (s.base ->> 'mean')::float8, NULL, NULL)
                 ) m (metric, value, low, high)
   WHERE v.id = ANY(measured) AND s.suite IS NOT NULL AND m.value IS NOT NULL
      ON CONFLICT (version_id, suite, metric) DO NOTHING
$$
"""
# A suite is called as its file, without the ending. The newest evaluation on a file of that name counts, of the
# version's own project: what others measured of it is theirs.
MEASURE_EVALUATION = """
CREATE FUNCTION catalogue_measure_evaluation(evaluated uuid[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO version_metrics (id, org_id, expert_id, version_id, listed, suite, metric, value, low, high, n)
  SELECT DISTINCT ON (v.id, s.suite, m.metric)
         gen_random_uuid(), v.org_id, v.expert_id, v.id, false, s.suite, m.metric, m.value, m.low, m.high,
         (x.results ->> 'n')::bigint
    FROM evaluations x JOIN expert_versions v ON v.id = x.version_id
         JOIN experts e ON e.id = v.expert_id AND e.project_id = x.project_id,
         LATERAL (SELECT regexp_replace(x.suite #>> '{file,name}', '\\.[^.]*$', '') AS suite) s,
         LATERAL (VALUES ('accuracy', (x.results ->> 'mean')::float8, (x.results ->> 'low')::float8,
                          (x.results ->> 'high')::float8),
                         ('pass_at_k', (x.results ->> 'pass_at_k')::float8, NULL, NULL),
                         ('parse_failures', (x.results ->> 'parse_failures')::float8, NULL, NULL)
                 ) m (metric, value, low, high)
   WHERE x.id = ANY(evaluated) AND x.results IS NOT NULL AND s.suite <> '' AND m.value IS NOT NULL
   ORDER BY v.id, s.suite, m.metric, x.created_at DESC
      ON CONFLICT (version_id, suite, metric) DO UPDATE
     SET value = excluded.value, low = excluded.low, high = excluded.high, n = excluded.n
$$
"""
# By table: when, and what is done for the row that was written.
TRIGGERS = {
    "expert_versions": (
        "AFTER INSERT",
        "PERFORM catalogue_measure_version(ARRAY[NEW.id]);"
        "PERFORM catalogue_write(ARRAY(SELECT id FROM expert_versions WHERE expert_id = NEW.expert_id"
        " AND version BETWEEN NEW.version - 1 AND NEW.version));",
    ),
    "expert_versions_said": (
        "AFTER UPDATE OF description, tags, archived_at, deleted_at",
        "PERFORM catalogue_write(ARRAY[NEW.id]);",
    ),
    "experts": (
        "AFTER UPDATE OF name, description, tags, archived_at, deleted_at, visibility",
        "PERFORM catalogue_write(ARRAY(SELECT id FROM expert_versions WHERE expert_id = NEW.id));",
    ),
    "aliases": (
        "AFTER INSERT OR UPDATE OF version_id",
        "PERFORM catalogue_write(ARRAY(SELECT i FROM unnest(ARRAY[NEW.version_id,"
        " CASE WHEN TG_OP = 'UPDATE' THEN OLD.version_id END]) i WHERE i IS NOT NULL));",
    ),
    "card_revisions": (
        "AFTER INSERT",
        "PERFORM catalogue_write(ARRAY(SELECT v.id FROM expert_versions v JOIN experts e ON e.id = v.expert_id"
        " WHERE e.id = NEW.expert_id AND v.version = e.last_version"
        " UNION SELECT a.version_id FROM aliases a WHERE a.expert_id = NEW.expert_id AND a.version_id IS NOT NULL));",
    ),
    "evaluations": (
        "AFTER INSERT OR UPDATE OF results",
        "IF NEW.version_id IS NOT NULL AND NEW.results IS NOT NULL THEN"
        " PERFORM catalogue_measure_evaluation(ARRAY[NEW.id]); PERFORM catalogue_write(ARRAY[NEW.version_id]); END IF;",
    ),
    "feedback": (
        "AFTER INSERT OR UPDATE OF score, deleted_at",
        "UPDATE catalogue_entries c SET feedback_count = s.n, feedback_sum = s.total,"
        " feedback_mean = CASE WHEN s.n > 0 THEN s.total / s.n ELSE '-Infinity' END"
        " FROM (SELECT x.feedback_count + d.n AS n, x.feedback_sum + d.total AS total FROM catalogue_entries x, (SELECT"
        " (NEW.deleted_at IS NULL)::int - CASE WHEN TG_OP = 'UPDATE' THEN (OLD.deleted_at IS NULL)::int ELSE 0 END AS n,"
        " CASE WHEN NEW.deleted_at IS NULL THEN NEW.score ELSE 0 END"
        " - CASE WHEN TG_OP = 'UPDATE' AND OLD.deleted_at IS NULL THEN OLD.score ELSE 0 END AS total) d"
        " WHERE x.version_id = NEW.version_id FOR UPDATE OF x) s WHERE c.version_id = NEW.version_id;",
    ),
}


def upgrade() -> None:
    op.add_column("experts", sa.Column("visibility", sa.Text(), server_default="private", nullable=False))
    op.create_check_constraint(op.f("ck_experts_visibility"), "experts", f"visibility IN ({VISIBILITIES})")
    op.execute("GRANT UPDATE (visibility) ON experts TO zhub_app")
    _create_tables()
    for statement in (WRITE, MEASURE_VERSION, MEASURE_EVALUATION):
        op.execute(sa.text(statement.replace(":", r"\:")))
    for name, (when, body) in TRIGGERS.items():
        table = name.removesuffix("_said")
        op.execute(
            sa.text(
                f"CREATE FUNCTION catalogue_of_{name}() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN {body.replace(':', chr(92) + ':')} RETURN NULL; END $$"
            )
        )
        op.execute(
            f"CREATE TRIGGER catalogue_{name} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION catalogue_of_{name}()"
        )
    _fill()


def _fill() -> None:
    """Make the entries of the versions that there are. The owner is fenced by row-level security as well, but for this."""
    fenced = [*READ, *TABLES, "aliases", "base_models"]
    for table in fenced:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    op.execute("SELECT catalogue_measure_version(ARRAY(SELECT id FROM expert_versions))")
    op.execute("SELECT catalogue_measure_evaluation(ARRAY(SELECT id FROM evaluations))")
    op.execute("SELECT catalogue_write(ARRAY(SELECT id FROM expert_versions))")
    op.execute(
        """
        UPDATE catalogue_entries c SET feedback_count = s.n, feedback_sum = s.total, feedback_mean = s.total / s.n
          FROM (SELECT version_id, count(*) AS n, sum(score) AS total FROM feedback WHERE deleted_at IS NULL
                 GROUP BY version_id) s WHERE s.version_id = c.version_id
        """
    )
    op.execute(
        """
        UPDATE catalogue_entries c SET used_tokens = s.tokens
          FROM (SELECT v.id, sum(u.prompt_tokens + u.completion_tokens) AS tokens
                  FROM token_usages u, unnest(string_to_array(u.experts, ' + ')) named, projects p, experts e,
                       expert_versions v
                 WHERE p.org_id = u.org_id AND p.name = split_part(named, '.', 1) AND e.project_id = p.id
                   AND e.name = split_part(split_part(named, '.', 2), '@', 1) AND v.expert_id = e.id
                   AND 'v' || v.version = split_part(named, '@', 2) GROUP BY v.id) s WHERE s.id = c.version_id
        """
    )
    for table in fenced:
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def _create_tables() -> None:
    op.create_table(
        "catalogue_entries",
        *(sa.Column(column, sa.Uuid(), nullable=False) for column in ("project_id", "expert_id", "version_id")),
        sa.Column("audience", sa.Uuid(), nullable=True),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("terms", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("document", postgresql.TSVECTOR(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("feedback_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("feedback_sum", sa.Float(), server_default="0", nullable=False),
        sa.Column("feedback_mean", sa.Float(), server_default=sa.text("'-Infinity'"), nullable=False),
        *_own(
            "catalogue_entries",
            {"project_id": "projects", "expert_id": "experts", "version_id": "expert_versions"},
        ),
        sa.UniqueConstraint("version_id", name=op.f("uq_catalogue_entries_version_id")),
    )
    op.create_table(
        "version_metrics",
        *(sa.Column(column, sa.Uuid(), nullable=False) for column in ("expert_id", "version_id")),
        sa.Column("audience", sa.Uuid(), nullable=True),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("n", sa.BigInteger(), nullable=True),
        *_own("version_metrics", {"expert_id": "experts", "version_id": "expert_versions"}),
        sa.UniqueConstraint("version_id", "suite", "metric", name=op.f("uq_version_metrics_version_id_suite_metric")),
    )
    op.create_table(
        "card_revisions",
        sa.Column("expert_id", sa.Uuid(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("links", postgresql.JSONB(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        *_own("card_revisions", {"expert_id": "experts"}),
        sa.UniqueConstraint("expert_id", "revision", name=op.f("uq_card_revisions_expert_id_revision")),
    )
    op.create_index("ix_catalogue_entries_terms", "catalogue_entries", ["terms"], postgresql_using="gin")
    op.create_index("ix_catalogue_entries_document", "catalogue_entries", ["document"], postgresql_using="gin")
    op.create_index("ix_catalogue_entries_expert", "catalogue_entries", ["expert_id", "created_at", "version_id"])
    for sort in ("created_at", "used_tokens", "feedback_mean"):
        op.create_index(f"ix_catalogue_entries_{sort}", "catalogue_entries", ["audience", sort, "version_id"])
        op.create_index(
            f"ix_catalogue_entries_listed_{sort}",
            "catalogue_entries",
            [sort, "version_id"],
            postgresql_where=sa.text("listed"),
        )
    best = ["suite", "metric", "value", "version_id"]
    op.create_index("ix_version_metrics_best", "version_metrics", ["audience", *best])
    op.create_index("ix_version_metrics_listed", "version_metrics", best, postgresql_where=sa.text("listed"))
    op.create_index("ix_version_metrics_expert", "version_metrics", ["expert_id", *best])
    tenant = "org_id = nullif(current_setting('zhub.org_id', true), '')::uuid"
    for table, grants in TABLES.items():
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO zhub_system")
        op.execute(f"GRANT {grants} ON {table} TO zhub_app")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO zhub_app USING ({tenant}) WITH CHECK ({tenant})")
        op.execute(f"CREATE POLICY system ON {table} TO zhub_system USING (true) WITH CHECK (true)")


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
    for name in TRIGGERS:
        op.execute(f"DROP TRIGGER catalogue_{name} ON {name.removesuffix('_said')}")
        op.execute(f"DROP FUNCTION catalogue_of_{name}()")
    for function in ("write", "measure_version", "measure_evaluation"):
        op.execute(f"DROP FUNCTION catalogue_{function}(uuid[])")
    for table in TABLES:
        op.drop_table(table)
    op.execute("REVOKE UPDATE (visibility) ON experts FROM zhub_app")
    op.drop_constraint(op.f("ck_experts_visibility"), "experts", type_="check")
    op.drop_column("experts", "visibility")
