"""Checkpoints as workers report them, and what is known of them."""

from typing import Any

from claims import admit_queued, claim_one
from sqlalchemy import Engine, func, select

from zhub.database.sessions import system_session
from zhub.models import Checkpoint
from zhub.queue import attempts
from zhub.queue.claims import Claim
from zhub.queue.job_events import Event
from zhub.storage.keys import checkpoints_prefix


def report_of(claim: Claim, step: int, /, **changed: Any) -> dict[str, Any]:
    """What a worker reports of a checkpoint."""
    return {
        "type": "checkpoint",
        "step": step,
        "key_prefix": f"{checkpoints_prefix(claim.org_id, claim.job_id)}/{step:06d}",
        "digest": f"{step:064x}",
        "size_bytes": 100,
        "z": {"name": "z.safetensors", "size_bytes": 40, "sha256": "e" * 64},
        "metrics": {"valid_reward_mean": 0.5},
    } | changed


def claim_again(engine: Engine) -> Claim:
    """Have the job admitted and claimed, without the wait."""
    with system_session(engine) as session:
        admit_queued(session)
        claimed_job = claim_one(session, "train")
    assert claimed_job is not None
    return claimed_job


def report(engine: Engine, claim: Claim, *steps: int, seq: int = 1, **changed: Any) -> None:
    """A heartbeat with one event for each checkpoint."""
    events = [Event(seq + n, "info", "message", "x", report_of(claim, step, **changed)) for n, step in enumerate(steps)]
    with system_session(engine) as session:
        attempts.heartbeat(session, claim.job_id, claim.fence, lease_s=60, progressed=True, events=events)


def live_steps(engine: Engine) -> list[int]:
    """The steps whose checkpoints are not deleted."""
    with system_session(engine) as session:
        return list(
            session.scalars(select(Checkpoint.step).where(Checkpoint.deleted_at.is_(None)).order_by(Checkpoint.step))
        )


def count_rows(engine: Engine) -> int:
    with system_session(engine) as session:
        return session.scalar(select(func.count()).select_from(Checkpoint)) or 0
