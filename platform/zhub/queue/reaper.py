"""The reaper takes jobs back whose lease has run out."""

import uuid
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.queue.attempts import MAX_INFRA_FAILURES, RELEASE, Failure, end_attempt, error_json, report_release


class Reaped(NamedTuple):
    """A job that was taken back, the fence of the attempt that lost it, and its next state."""

    job_id: uuid.UUID
    org_id: uuid.UUID
    fence: int
    state: str


def reap(session: Session) -> list[Reaped]:
    """Take back every job whose lease has run out; return them. The leader calls this."""
    rows = session.execute(
        text(
            f"""
            UPDATE jobs SET {RELEASE}
             WHERE id IN (SELECT id FROM jobs WHERE lease_until < now() ORDER BY lease_until LIMIT 100
                          FOR UPDATE SKIP LOCKED)
         RETURNING id, org_id, fence, state
            """
        ),
        {
            "infra": 1,
            "limit": MAX_INFRA_FAILURES,
            "error": error_json(Failure("lost", "The job was lost too often: no worker kept answering.")),
        },
    ).all()
    for row in rows:
        message = f"Attempt {row.fence} was lost: its lease ran out."
        end_attempt(session, row.id, row.fence, "lost", message)
        report_release(session, row.org_id, row.id, row.fence, row.state, message)
    return [Reaped(*row) for row in rows]
