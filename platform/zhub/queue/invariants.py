"""Rules that the database's rows must always obey, as queries: for tests, after an outage, and in production.

The checks share no code with the statements that implement the protocol. Each query selects the rows that break one
rule, so an empty result is good. The queries only read, and may run at any time.
"""

import uuid
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

MAX_FOUND = 20  # of each rule
CLOCK_GRACE_S = 1  # the time in a row is the begin of its transaction
LEASE_GRACE_S = 60  # by then the leader should have reaped a job whose lease ran out
REQUEST_GRACE_S = 60  # by then the leader should have applied a requested change of a job without an attempt


@dataclass(frozen=True)
class Finding:
    """A row that breaks a rule, and in ``detail`` how it does."""

    rule: str
    id: uuid.UUID
    detail: str


# Rule -> rows (id, detail) that break it.
RULES: Final[dict[str, str]] = {
    "a job makes at most one version, and only by succeeding": """
        SELECT j.id, 'state ' || j.state || ', ' || count(v.id) || ' versions'
          FROM jobs j LEFT JOIN expert_versions v ON v.job_id = j.id
         WHERE j.expert_id IS NOT NULL GROUP BY j.id HAVING count(v.id) <> (j.state = 'succeeded')::int
    """,
    "a version was made by the attempt that owned its job": """
        SELECT v.id, 'fence ' || v.fence || ', the job''s is ' || j.fence || ', that attempt '
               || coalesce(a.outcome, 'has not ended')
          FROM expert_versions v JOIN jobs j ON j.id = v.job_id
          LEFT JOIN attempts a ON a.job_id = v.job_id AND a.fence = v.fence
         WHERE v.fence <> j.fence OR a.outcome IS DISTINCT FROM 'succeeded'
    """,
    "no job whose cancellation was accepted makes a version": """
        SELECT j.id, 'version ' || v.version FROM jobs j JOIN expert_versions v ON v.job_id = j.id
         WHERE j.desired = 'cancel'
    """,
    "the versions of an expert are numbered without a gap": """
        SELECT e.id, 'last ' || e.last_version || ', ' || count(v.id) || ' versions, the largest '
               || coalesce(max(v.version), 0)
          FROM experts e LEFT JOIN expert_versions v ON v.expert_id = e.id
         GROUP BY e.id HAVING count(v.id) <> e.last_version OR coalesce(max(v.version), 0) <> e.last_version
    """,
    "there is one attempt for each fence that was given out": """
        SELECT j.id, 'fence ' || j.fence || ', ' || count(a.id) || ' attempts, the last ' || coalesce(max(a.fence), 0)
          FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id
         GROUP BY j.id HAVING count(a.id) <> j.fence OR coalesce(max(a.fence), 0) <> j.fence
    """,
    "an attempt is open exactly while its job is active, and it is the last one": """
        SELECT j.id, 'state ' || j.state || ', open attempts: ' || coalesce(string_agg(a.fence::text, ', '), 'none')
          FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.ended_at IS NULL
         GROUP BY j.id
        HAVING count(a.id) <> (j.state IN ('starting', 'running', 'stopping'))::int
            OR max(a.fence) IS DISTINCT FROM CASE WHEN count(a.id) > 0 THEN j.fence END
    """,
    "no attempt begins before the one before it has ended": f"""
        SELECT a.id, 'attempt ' || a.fence || ' began at ' || a.created_at || ', the one before ended at '
               || coalesce(b.ended_at::text, 'no time')
          FROM attempts a JOIN attempts b ON b.job_id = a.job_id AND b.fence = a.fence - 1
         WHERE b.ended_at IS NULL OR b.ended_at > a.created_at + interval '{CLOCK_GRACE_S} seconds'
    """,
    "a lease that ran out is taken back": f"""
        SELECT id, 'the lease ran out at ' || lease_until FROM jobs
         WHERE lease_until < now() - interval '{LEASE_GRACE_S} seconds'
    """,
    "a checkpoint belongs to an attempt of its job": """
        SELECT c.id, 'step ' || c.step || ', fence ' || c.fence
          FROM checkpoints c LEFT JOIN attempts a ON a.job_id = c.job_id AND a.fence = c.fence WHERE a.id IS NULL
    """,
    "a job references only its own tenant's objects": """
        SELECT j.id, 'the expert belongs to another organisation'
          FROM jobs j JOIN experts e ON e.id = j.expert_id WHERE e.org_id <> j.org_id
    """,
    "a job that depends on others began after all of them had succeeded": """
        SELECT j.id, 'state ' || j.state || ', while ' || n.id || ' is ' || n.state
          FROM jobs j JOIN job_dependencies d ON d.job_id = j.id JOIN jobs n ON n.id = d.needs_job_id
         WHERE j.fence > 0 AND n.state <> 'succeeded'
    """,
    "an alias points to the version of its last move": """
        SELECT a.id, '@' || a.name || ' points to ' || coalesce(a.version_id, a.release_version_id)
               || ', and was moved to ' || coalesce(m.moved_to::text, 'nothing')
          FROM aliases a LEFT JOIN LATERAL
               (SELECT coalesce(to_version_id, to_release_version_id) AS moved_to FROM alias_moves
                 WHERE alias_id = a.id ORDER BY position DESC LIMIT 1) m ON true
         WHERE m.moved_to IS DISTINCT FROM coalesce(a.version_id, a.release_version_id)
    """,
    "no alias points to a deleted version": """
        SELECT a.id, '@' || a.name || ' points to version ' || v.version || ', deleted at ' || v.deleted_at
          FROM aliases a JOIN expert_versions v ON v.id = a.version_id WHERE v.deleted_at IS NOT NULL
         UNION ALL
        SELECT a.id, '@' || a.name || ' points to version ' || v.version || ', deleted at ' || v.deleted_at
          FROM aliases a JOIN release_versions v ON v.id IN (a.release_version_id, a.canary_version_id)
         WHERE v.deleted_at IS NOT NULL
    """,
    "nothing asks a yanked version": """
        SELECT a.id, '@' || a.name || ' points to version ' || v.version || ', yanked at ' || v.yanked_at
          FROM aliases a JOIN expert_versions v ON v.id = a.version_id WHERE v.yanked_at IS NOT NULL
         UNION ALL
        SELECT a.id, '@' || a.name || ' points to a release of version ' || v.version || ', yanked at ' || v.yanked_at
          FROM aliases a JOIN release_versions r ON r.id IN (a.release_version_id, a.canary_version_id)
               LEFT JOIN release_experts e ON e.release_version_id = r.id
               JOIN expert_versions v ON v.id IN (e.version_id, r.classifier_version_id)
         WHERE v.yanked_at IS NOT NULL
    """,
    "no release pins a deleted version": """
        SELECT r.id, 'version ' || v.version || ' of ' || v.expert_id || ', deleted at ' || v.deleted_at
          FROM release_versions r LEFT JOIN release_experts e ON e.release_version_id = r.id
               JOIN expert_versions v ON v.id IN (e.version_id, r.classifier_version_id)
         WHERE r.deleted_at IS NULL AND v.deleted_at IS NOT NULL
    """,
    "each move of an alias begins where the one before it ended": """
        SELECT id, 'from ' || coalesce(moved_from::text, 'nothing') || ', and it pointed to '
               || coalesce(before::text, 'nothing')
          FROM (SELECT id, coalesce(from_version_id, from_release_version_id) AS moved_from,
                       lag(coalesce(to_version_id, to_release_version_id))
                         OVER (PARTITION BY alias_id ORDER BY position) AS before
                  FROM alias_moves) m
         WHERE moved_from IS DISTINCT FROM before
    """,
    "a version that a gate promoted passed on every suite": """
        SELECT id, 'findings ' || findings::text FROM promotions
         WHERE promoted AND (findings IS NULL OR jsonb_path_exists(findings, '$[*] ? (@.passed == false)'))
    """,
    "a tick that fired has its job": """
        SELECT id, 'tick ' || key FROM schedule_ticks WHERE outcome = 'fired' AND job_id IS NULL
    """,
    "a version's manifest names the attempt that made it, and lies where no other writes": """
        SELECT id, 'fence ' || fence || ', the manifest says job ' || coalesce(manifest->>'job_id', 'none')
               || ', fence ' || coalesce(manifest->>'fence', 'none') || ', at ' || key_prefix
          FROM expert_versions
         WHERE manifest->>'job_id' IS DISTINCT FROM job_id::text OR manifest->>'fence' IS DISTINCT FROM fence::text
            OR key_prefix <> 't/' || replace(org_id::text, '-', '') || '/jobs/' || replace(job_id::text, '-', '')
                             || '/attempts/' || fence
    """,
    "a job has succeeded exactly if its last attempt has": """
        SELECT j.id, 'state ' || j.state || ', fence ' || j.fence || ', attempts that succeeded: '
               || coalesce(string_agg(a.fence::text, ', '), 'none')
          FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.outcome = 'succeeded'
         WHERE NOT EXISTS (SELECT 1 FROM promotions p WHERE p.job_id = j.id) GROUP BY j.id
        HAVING count(a.id) <> (j.state = 'succeeded')::int
            OR max(a.fence) IS DISTINCT FROM CASE WHEN count(a.id) > 0 THEN j.fence END
    """,
    "each failure of an attempt counts once against its job's budget": """
        SELECT j.id, 'counted ' || j.infra_failures + j.forgiven_infra_failures || ' + '
               || j.user_failures + j.forgiven_user_failures || ', failed '
               || count(a.id) FILTER (WHERE a.outcome <> 'failed_user') || ' + '
               || count(a.id) FILTER (WHERE a.outcome = 'failed_user')
          FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.outcome IN ('failed_user', 'failed_infra', 'lost')
         GROUP BY j.id
        HAVING count(a.id) FILTER (WHERE a.outcome <> 'failed_user') <> j.infra_failures + j.forgiven_infra_failures
            OR count(a.id) FILTER (WHERE a.outcome = 'failed_user') <> j.user_failures + j.forgiven_user_failures
    """,
    # All rows of one transaction have the same time.
    "the start and the end of an attempt each have an event of the same transaction": """
        SELECT a.id, 'attempt ' || a.fence || ' began at ' || a.created_at || ', ended at '
               || coalesce(a.ended_at::text, 'no time')
          FROM attempts a
         WHERE NOT EXISTS (SELECT 1 FROM job_events e WHERE e.job_id = a.job_id AND e.created_at = a.created_at)
            OR a.ended_at IS NOT NULL AND NOT EXISTS
               (SELECT 1 FROM job_events e WHERE e.job_id = a.job_id AND e.created_at = a.ended_at)
    """,
    "the events that an attempt reported are numbered without a gap": """
        SELECT job_id, 'fence ' || fence || ', ' || count(*) || ' reports, the last ' || max(seq)
          FROM job_events WHERE seq IS NOT NULL GROUP BY job_id, fence HAVING count(*) <> max(seq)
    """,
    "nothing happens to a job that has ended": f"""
        SELECT j.id, j.state || ' at ' || j.finished_at || ', and at ' || max(e.created_at) || ': ' || min(e.message)
          FROM jobs j JOIN job_events e
            ON e.job_id = j.id AND e.created_at > j.finished_at + interval '{CLOCK_GRACE_S} seconds'
           AND e.data->>'type' IS DISTINCT FROM 'redrive'
         GROUP BY j.id
    """,
    "a requested change of a job without an attempt is applied": f"""
        SELECT j.id, 'state ' || j.state || ', desired: ' || j.desired || ', nothing has happened since '
               || max(e.created_at)
          FROM jobs j JOIN job_events e ON e.job_id = j.id
         WHERE j.state IN ('queued', 'admitted') AND j.desired IN ('cancel', 'pause')
            OR j.state = 'paused' AND j.desired IN ('run', 'cancel')
            -- A waiting job is paused only once it is queued: a paused job does not wait for its dependencies.
            OR j.state = 'waiting' AND j.desired = 'cancel'
         GROUP BY j.id HAVING max(e.created_at) < now() - interval '{REQUEST_GRACE_S} seconds'
    """,
    "a cluster's agents give out no more workers than they have": """
        SELECT (array_agg(a.job_id ORDER BY a.created_at DESC))[1], 'cluster ' || j.cluster || ' has ' || c.workers
               || ' workers, and ' || round(sum(a.workers)::numeric, 3) || ' are in use'
          FROM attempts a JOIN jobs j ON j.id = a.job_id
          JOIN (SELECT cluster, max(slots) AS workers FROM agents
                 WHERE seen_at > now() - interval '30 seconds' GROUP BY cluster) c ON c.cluster = j.cluster
         WHERE a.ended_at IS NULL GROUP BY j.cluster, c.workers
        HAVING sum(least(a.workers, c.workers)) > c.workers + 1e-6
    """,
}


def examine(session: Session) -> list[Finding]:
    """The rows that break a rule, at most MAX_FOUND for each rule. The session must see all tenants."""
    return [
        Finding(rule, row[0], row[1])
        for rule, statement in RULES.items()
        for row in session.execute(text(f"SELECT * FROM ({statement}) AS found LIMIT {MAX_FOUND}"))
    ]
