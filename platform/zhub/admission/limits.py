"""Checks before a job is queued: its organisation's queue is not full, and agents offer its cluster."""

import uuid
from datetime import timedelta

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import InvalidRequestError, QuotaExceededError
from zhub.models import Agent, Job
from zhub.queue.jobs import KindNames
from zhub.tenancy import quotas

DEFAULT_CLUSTER = "default"
OFFERED_FOR = timedelta(days=1)  # a cluster whose agents were seen within this time may come back
AGENT_LOST_AFTER_S = 30.0


def check_queue(session: Session, org_id: uuid.UUID, kinds: KindNames) -> None:
    """Check that an organisation may queue another job.

    Raises:
        QuotaExceededError: as many of its jobs wait as its quota allows.
    """
    limit = quotas.limits_of(session, org_id).max_queued
    waiting = select(Job.id).where(
        Job.org_id == org_id,
        Job.state.in_((states.WAITING, states.QUEUED)),
        Job.kind.not_in([*kinds.light, *kinds.without_worker]),
    )
    # The count stops at the limit, because a queue may be long.
    count = session.scalar(select(func.count()).select_from(waiting.limit(limit).subquery())) or 0
    if count >= limit:
        raise QuotaExceededError(
            f"{count} jobs of your organisation wait already, which is its quota. Wait until some have begun, cancel "
            "some, or ask the platform's operator for more."
        )


def check_cluster(session: Session, cluster: str, *, param: str) -> None:
    """Check that an agent has offered the cluster within ``OFFERED_FOR``.

    Raises:
        InvalidRequestError: none has. It has this ``param``, and its message names the clusters that are offered.
    """
    # A job that names no cluster may be queued before the first agent has ever started.
    if cluster == DEFAULT_CLUSTER:
        return
    seen_recently = Agent.seen_at > func.now() - OFFERED_FOR
    offered = list(session.scalars(select(Agent.cluster).where(seen_recently).distinct().order_by(Agent.cluster)))
    if cluster not in offered:
        raise InvalidRequestError(
            f"No agent has offered a cluster '{cluster}' within a day. Leave 'cluster' out, or give one of: "
            f"{', '.join(offered) or 'none has been seen'}.",
            param=param,
        )


def is_alive(cluster: str) -> ColumnElement[bool]:
    """A condition: the cluster has a live agent."""
    lost_after = timedelta(seconds=AGENT_LOST_AFTER_S)
    return select(Agent.id).where(Agent.cluster == cluster, Agent.seen_at > func.now() - lost_after).exists()
