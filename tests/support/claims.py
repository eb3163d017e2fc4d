"""How a job gets to an attempt, the short way: what the leader and an agent do, without their loops."""

import uuid
from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.kinds import table
from zhub.queue import claims as job_claims
from zhub.queue.claims import Claim

AGENT = uuid.UUID(int=1)


def admit_queued(session: Session) -> None:
    """Admit every queued job, whatever its back-off, its rank and its organisation's quota."""
    session.execute(text("UPDATE jobs SET state = 'admitted', admitted_at = now() WHERE state = 'queued'"))


def claim_one(
    session: Session,
    *kinds: str,
    agent: uuid.UUID = AGENT,
    cluster: str = "default",
    free: int = 1,
    packs: Collection[str] = (),
) -> Claim | None:
    """Lease the first admitted job of these kinds for a minute, as ``jobs.claim_up_to`` does; None where none fits."""
    claims = job_claims.claim_up_to(
        session, 1, agent, cluster, kinds, lease_s=60, light=table.names().light, free=free, packs=packs
    )
    return claims[0] if claims else None
