"""Claims: an agent leases admitted jobs, each under a new fence.

A claim raises ``fence`` by one. Each later write of that attempt (``zhub.queue.attempts``) names its fence, and changes
nothing if the job has another fence. All times come from the database's clock. Functions take a Session and never
commit.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.ids import new_id


@dataclass(frozen=True)
class Claim:
    """A job that was just claimed: its spec, its fence, and what its attempt starts with."""

    job_id: uuid.UUID
    org_id: uuid.UUID
    fence: int
    kind: str
    spec: dict[str, Any]
    workers: int = 1
    """How many workers the job gets: as many as it requests, at most all that its agent has."""
    pack_key: str | None = None
    """Jobs with the same key may share a worker, see ``zhub.training.packing``; None: this job shares with none."""
    checkpoint: dict[str, Any] | None = None
    """``{"key_prefix", "digest", "step"}`` of the newest checkpoint, if an earlier attempt left one."""
    traceparent: str | None = None
    queued_s: float = field(default=0.0, compare=False)
    """From when the job could first have been admitted until it was; 0 if that is not known."""
    waited_s: float = field(default=0.0, compare=False)
    """From the job's admission until this claim."""


def claim_up_to(
    session: Session,
    limit: int,
    agent_id: uuid.UUID,
    cluster: str,
    kinds: Sequence[str],
    *,
    lease_s: float,
    light: Collection[str] = (),
    free: int = 1,
    packs: Collection[str] = (),
) -> list[Claim]:
    """Lease the first admitted jobs of these kinds, at most ``limit``. Two callers never get the same job.

    The caller commits before it starts an attempt, and renews each lease before ``lease_s`` seconds have passed. Jobs
    of the kinds ``light`` use no worker of their cluster.

    ``free`` workers hold no attempt, and the packs with keys ``packs`` have room. Jobs are leased in their order, up to
    the first that does not fit. No later job overtakes it, so it gets the next workers that become free, all that it
    requests at once. A job that has been lost before shares no worker: it may be poison.
    """
    rows = session.execute(
        _CLAIM,
        {
            "agent": agent_id,
            "lease_s": lease_s,
            "cluster": cluster,
            "kinds": list(kinds),
            "limit": limit,
            "free": free,
            "packs": list(packs),
            "light": list(light),
            "attempts": [new_id() for _ in range(limit)],
            "events": [new_id() for _ in range(limit)],
        },
    )
    return [Claim(*row) for row in rows]


# One statement, so that claims are one round trip: the jobs, their attempts, what owners are told, and where to go on.
# Plan at 10^6 jobs: the first :limit entries of ix_jobs_claim, twice; 16 rows for 8 claims, 1 ms.
_CLAIM = text("""
    WITH picked AS MATERIALIZED (
        SELECT id, admitted_at, least(workers, (SELECT slots FROM agents WHERE id = :agent)) AS takes FROM jobs
         WHERE state = 'admitted' AND desired = 'run' AND cluster = :cluster AND kind = ANY(:kinds)
         ORDER BY admitted_at, id LIMIT :limit FOR UPDATE SKIP LOCKED
    ), numbered AS (
        SELECT id AS picked_id, takes, row_number() OVER up_to AS position, sum(takes) OVER up_to AS taken
          FROM picked WINDOW up_to AS (ORDER BY admitted_at, id)
    ), claimed AS (
        UPDATE jobs SET state = 'starting', fence = fence + 1, agent_id = :agent,
               lease_until = now() + make_interval(secs => :lease_s), progress_at = now(),
               started_at = coalesce(started_at, now())
          FROM numbered
         WHERE id = picked_id AND state = 'admitted'
           AND (taken <= :free OR position = 1 AND infra_failures = 0 AND pack_key = ANY(:packs))
     RETURNING position, id, org_id, fence, kind, spec, takes AS workers,
               CASE infra_failures WHEN 0 THEN pack_key END AS pack_key, traceparent,
               greatest(0, extract(epoch FROM now() - admitted_at))::float AS waited_s,
               CASE WHEN fence = 1 OR not_before IS NOT NULL
                    THEN greatest(0, extract(epoch FROM admitted_at - greatest(created_at, not_before)))::float
                    ELSE 0 END AS queued_s
    ), attempt AS (
        INSERT INTO attempts (id, org_id, job_id, fence, agent_id, workers)
        SELECT (cast(:attempts AS uuid[]))[position], org_id, claimed.id, fence, :agent,
               CASE WHEN kind = ANY(:light) THEN 0
                    WHEN pack_key IS NULL THEN workers
                    ELSE 1.0 / coalesce(agents.jobs_per_worker, 1) END
          FROM claimed LEFT JOIN agents ON agents.id = :agent
    ), told AS (
        INSERT INTO job_events (id, org_id, job_id, level, type, message)
        SELECT (cast(:events AS uuid[]))[position], org_id, id, 'info', 'message', 'Attempt ' || fence || ' started.'
          FROM claimed
    )
    SELECT id, org_id, fence, kind, spec, workers, pack_key,
           (SELECT jsonb_build_object('key_prefix', c.key_prefix, 'digest', c.digest, 'step', c.step)
              FROM checkpoints c WHERE c.job_id = claimed.id AND c.deleted_at IS NULL
             ORDER BY c.step DESC LIMIT 1) AS checkpoint, traceparent, queued_s, waited_s
      FROM claimed ORDER BY position
""")
