"""What is refused before a job is queued: a full queue, and a cluster that nobody offers."""

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


OFFERED_FOR = timedelta(days=1)  # a cluster that was seen so lately may come back


AGENT_LOST_AFTER_S = 30.0


def check_queue(session: Session, org_id: uuid.UUID, kinds: KindNames) -> None:
    """Refuse another job of an organisation whose queue is full.

    Raises:
        QuotaExceededError: as many of its jobs wait as its quota allows.
    """
    limit = quotas.limits_of(session, org_id).max_queued
    waiting = select(Job.id).where(
        Job.org_id == org_id,
        Job.state.in_((states.WAITING, states.QUEUED)),
        Job.kind.not_in([*kinds.light, *kinds.without_worker]),
    )
    # Counted no further than needed: a queue may be long.
    count = session.scalar(select(func.count()).select_from(waiting.limit(limit).subquery())) or 0
    if count >= limit:
        raise QuotaExceededError(
            f"{count} jobs of your organisation wait already, which is its quota. Wait until some have begun, cancel "
            "some, or ask the platform's operator for more."
        )


def check_cluster(session: Session, cluster: str, *, param: str) -> None:
    """Refuse a cluster that no agent has offered lately.

    Raises:
        InvalidRequestError: with this ``param``, and the clusters that there are.
    """
    # Where nobody chooses, the job may wait for the first agent ever.
    if cluster == DEFAULT_CLUSTER:
        return
    lately = Agent.seen_at > func.now() - OFFERED_FOR
    offered = list(session.scalars(select(Agent.cluster).where(lately).distinct().order_by(Agent.cluster)))
    if cluster not in offered:
        raise InvalidRequestError(
            f"No agent has offered a cluster '{cluster}' within a day. Leave 'cluster' out, or give one of: "
            f"{', '.join(offered) or 'none has been seen'}.",
            param=param,
        )


def is_alive(cluster: str) -> ColumnElement[bool]:
    """Whether a cluster has a live agent."""
    lost_after = timedelta(seconds=AGENT_LOST_AFTER_S)
    return select(Agent.id).where(Agent.cluster == cluster, Agent.seen_at > func.now() - lost_after).exists()
