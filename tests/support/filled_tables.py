"""A database with a long history and a long queue, written by a few statements."""

import psycopg

ORGANIZATIONS, EXPERTS = 20, 100

# What each job is by its number: some in every state that the leader looks after, then seven tenths history and three
# tenths queue, a third of which are light. A waiting job needs one of the queue, and every tenth one that succeeded.
_FILL = """
SET session_replication_role = replica;  -- the rows are consistent: no foreign key is checked

INSERT INTO organizations (id, name)
SELECT ('0a' || lpad(to_hex(g), 30, '0'))::uuid, 'org-' || g FROM generate_series(0, {organizations} - 1) g;
INSERT INTO projects (id, org_id, name)
SELECT ('0b' || lpad(to_hex(g), 30, '0'))::uuid, ('0a' || lpad(to_hex(g), 30, '0'))::uuid, 'main'
  FROM generate_series(0, {organizations} - 1) g;
INSERT INTO base_models (id, name, status, source, weights_fingerprint, basis_fingerprint, basis_key_prefix, is_default)
VALUES ('0c000000-0000-0000-0000-000000000000', 'tiny', 'ready', '{{}}', 'w', 'b', 'bases/tiny', true);
INSERT INTO agents (id, cluster, slots, seen_at)
VALUES ('0d000000-0000-0000-0000-000000000000', 'default', 300, now() + interval '1 day');

INSERT INTO jobs (id, org_id, project_id, kind, spec, base_model_id, desired, state, cluster, priority, fence,
                  user_failures, infra_failures, agent_id, lease_until, not_before, admitted_at, finished_at,
                  ranked_at, created_at)
SELECT ('01' || lpad(to_hex(g), 30, '0'))::uuid, ('0a' || lpad(to_hex(g / 10 % {organizations}), 30, '0'))::uuid,
       ('0b' || lpad(to_hex(g / 10 % {organizations}), 30, '0'))::uuid,
       CASE WHEN g > 2000 AND g % 10 = 9 THEN 'validate' ELSE 'train' END, '{{}}',
       '0c000000-0000-0000-0000-000000000000',
       CASE WHEN g BETWEEN 301 AND 350 THEN 'cancel' WHEN g BETWEEN 351 AND 400 THEN 'pause' ELSE 'run' END, state,
       CASE WHEN g % 1000 = 7 THEN 'elsewhere' ELSE 'default' END, 0, (state IN ('running', 'succeeded'))::int, 0, 0,
       CASE WHEN state = 'running' THEN '0d000000-0000-0000-0000-000000000000'::uuid END,
       CASE WHEN state = 'running' THEN now() + interval '1 hour' * (CASE WHEN g > 250 THEN -1 ELSE 1 END) END,
       CASE WHEN state = 'queued' AND g % 500 = 8 THEN now() + interval '1 hour' END,
       CASE WHEN state IN ('admitted', 'running', 'succeeded') THEN now() END,
       CASE WHEN state = 'succeeded' THEN now() END,
       now() - interval '1 millisecond' * ({rows} - g), now() - interval '1 millisecond' * ({rows} - g)
  FROM generate_series(1, {rows}) g,
       LATERAL (SELECT CASE WHEN g <= 100 THEN 'admitted' WHEN g <= 300 THEN 'running' WHEN g <= 350 THEN 'queued'
                            WHEN g <= 450 THEN 'paused' WHEN g <= 1450 THEN 'waiting'
                            WHEN g % 10 < 7 THEN 'succeeded' ELSE 'queued' END AS state) s;
INSERT INTO job_dependencies (id, org_id, job_id, needs_job_id)
SELECT ('02' || lpad(to_hex(g), 30, '0'))::uuid, ('0a' || lpad(to_hex(g / 10 % {organizations}), 30, '0'))::uuid,
       ('01' || lpad(to_hex(g), 30, '0'))::uuid,
       ('01' || lpad(to_hex(CASE WHEN g % 10 = 0 THEN 2000 ELSE 2008 END), 30, '0'))::uuid
  FROM generate_series(451, 1450) g;
INSERT INTO attempts (id, org_id, job_id, fence, agent_id, ended_at, outcome, charged)
SELECT ('03' || substr(id::text, 3))::uuid, org_id, id, 1, '0d000000-0000-0000-0000-000000000000', finished_at,
       CASE WHEN finished_at IS NOT NULL THEN 'succeeded' END, finished_at IS NOT NULL
  FROM jobs WHERE fence = 1;
-- Half of the events are one job's.
INSERT INTO job_events (id, org_id, job_id, xid, level, type, message)
SELECT ('04' || lpad(to_hex(g), 30, '0'))::uuid, '0a000000-0000-0000-0000-000000000000',
       ('01' || lpad(to_hex(CASE WHEN g % 2 = 0 THEN 100 ELSE g END), 30, '0'))::uuid, 1 + g / 1000, 'info', 'message',
       'It happened.'
  FROM generate_series(1, {rows}) g;

INSERT INTO experts (id, org_id, project_id, name, last_version)
SELECT ('05' || lpad(to_hex(g), 30, '0'))::uuid, '0a000000-0000-0000-0000-000000000000',
       '0b000000-0000-0000-0000-000000000000', 'expert-' || g, {rows} / {experts}
  FROM generate_series(0, {experts} - 1) g;
INSERT INTO expert_versions (id, org_id, expert_id, base_model_id, version, job_id, fence, digest, manifest, key_prefix,
                             size_bytes)
SELECT ('06' || lpad(to_hex(g), 30, '0'))::uuid, '0a000000-0000-0000-0000-000000000000',
       ('05' || lpad(to_hex(g % {experts}), 30, '0'))::uuid, '0c000000-0000-0000-0000-000000000000', 1 + g / {experts},
       ('01' || lpad(to_hex(g), 30, '0'))::uuid, 1, 'd', jsonb_build_object(
           'basis_fingerprint', 'b', 'best_step', g % 3, 'parent_digest', NULL,
           'files', '[{{"name": "routing.safetensors"}}]'::jsonb,
           'hyperparameters',
           jsonb_build_object('adapter', CASE WHEN g / {experts} % 10 = 9 THEN 'lora' ELSE 'svf' END)), 'k', 1
  FROM generate_series(0, {rows} - 1) g;
INSERT INTO catalogue_entries (id, org_id, project_id, expert_id, version_id, audience, listed, archived, terms,
                               document, created_at, updated_at)
SELECT ('07' || substr(id::text, 3))::uuid, org_id, '0b000000-0000-0000-0000-000000000000', expert_id, id,
       '0b000000-0000-0000-0000-000000000000', false, false, ARRAY['base:tiny', 'tag:team=' || version % 20], 'sums',
       created_at - interval '1 second' * version, now()
  FROM expert_versions;
INSERT INTO version_metrics (id, org_id, expert_id, version_id, audience, listed, suite, metric, value)
SELECT ('08' || substr(id::text, 3))::uuid, org_id, expert_id, id, '0b000000-0000-0000-0000-000000000000', false,
       'test', 'accuracy', version / 1e6
  FROM expert_versions;
"""


def fill(admin_url: str, rows: int) -> None:
    """Write so many jobs, events and versions, and have their statistics taken."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(_FILL.format(rows=rows, organizations=ORGANIZATIONS, experts=EXPERTS).encode())
        connection.execute("ANALYZE")
