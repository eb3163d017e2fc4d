"""Poison: decides whether a job, or something else, makes its workers die (decision 0017)."""

import uuid
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from zhub.models import Attempt

NODES = 2  # a job is poison once workers died under it, and under no other job, on so many nodes that are still alive
ALONE_FOR = timedelta(minutes=10)  # before and after a loss: a worker that another job lost on the node clears this job


def note(session: Session, job_id: uuid.UUID, fence: int, died_on: str) -> None:
    """Record the node on which a worker died, before its attempt ends. This clears other jobs that lost one there."""
    session.execute(update(Attempt).where(Attempt.job_id == job_id, Attempt.fence == fence).values(died_on=died_on))


def is_poison(session: Session, job_id: uuid.UUID, nodes: Collection[str]) -> bool:
    """Whether workers died under this job alone on ``NODES`` of ``nodes``, the nodes that are alive.

    Call it before the job's last attempt ends.
    """
    counted = {"job": job_id, "nodes": list(nodes), "alone_for": ALONE_FOR}
    return bool(session.execute(_DIED_ALONE_ON, counted).scalar_one() >= NODES)


# Counts only attempts since the job was created or redriven, and only those that added no checkpoint: a job that makes
# progress between two losses is not poison. A node that has died is not counted: the worker died with its node.
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
