"""Poison: whether a job brings its workers down, or something else does (decision 0017)."""

import uuid
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from zhub.models import Attempt

NODES = 2  # that live on after a worker of the job alone has died there, before the job is to blame
ALONE_FOR = timedelta(minutes=10)  # before and after a loss, in which no other job may have lost a worker there


def note(session: Session, job_id: uuid.UUID, fence: int, died_on: str) -> None:
    """Note the node where an attempt's worker died, before the attempt ends: it clears the others that died there."""
    session.execute(update(Attempt).where(Attempt.job_id == job_id, Attempt.fence == fence).values(died_on=died_on))


def is_poison(session: Session, job_id: uuid.UUID, nodes: Collection[str]) -> bool:
    """Whether a job, whose attempt has not ended yet, has brought down workers on ``NODES`` of the living ``nodes``."""
    counted = {"job": job_id, "nodes": list(nodes), "alone_for": ALONE_FOR}
    return bool(session.execute(_DIED_ALONE_ON, counted).scalar_one() >= NODES)


# Only attempts since the job was made or redriven, and of those the ones that got no further than their checkpoint: a
# job that gets on between two losses is no poison. A node that has died is what the worker died of.
_DIED_ALONE_ON = text("""
    SELECT count(DISTINCT died_on) FROM attempts a JOIN jobs j ON j.id = a.job_id
     WHERE a.job_id = :job AND died_on = ANY(:nodes) AND a.created_at >= j.started_at
       AND a.outcome IS DISTINCT FROM 'preempted'
       AND a.fence >= coalesce((SELECT max(c.fence) FROM checkpoints c WHERE c.job_id = a.job_id), 0)
       AND NOT EXISTS (
           SELECT FROM attempts other WHERE other.died_on = a.died_on AND other.job_id <> a.job_id
              AND other.ended_at BETWEEN coalesce(a.ended_at, now()) - cast(:alone_for AS interval)
                                     AND coalesce(a.ended_at, now()) + cast(:alone_for AS interval))
""")
