"""Heartbeats of an attempt, and all the ways in which an attempt ends.

Each statement checks the attempt's fence: after another claim it changes nothing and raises LeaseLostError.
All times come from the database's clock. Functions take a Session and never commit.
"""

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import LeaseLostError
from zhub.ids import new_id
from zhub.models import Attempt, Job
from zhub.queue import job_events, poison
from zhub.queue.job_events import Event
from zhub.queue.poison import is_poison
from zhub.webhooks import outbox

MAX_USER_FAILURES = 2  # retries after an unexpected error in the recipe itself


MAX_INFRA_FAILURES = 5  # retries after a lost actor, a lost agent, or an unreachable store


class Succeeded(NamedTuple):
    """A job that has just succeeded, and the rows that its result belongs to."""

    id: uuid.UUID
    org_id: uuid.UUID
    project_id: uuid.UUID
    kind: str
    expert_id: uuid.UUID | None
    base_model_id: uuid.UUID | None
    dataset_version_id: uuid.UUID | None


class Released(NamedTuple):
    """A job whose attempt has ended without success, and the rows that its result would have belonged to."""

    job_id: uuid.UUID
    org_id: uuid.UUID
    fence: int
    kind: str
    state: str
    """The job's new state: queued (it will be retried), paused, cancelled or failed."""
    dataset_version_id: uuid.UUID | None
    base_model_id: uuid.UUID | None
    reason: str


# The columns from which ``released`` builds a Released.
RELEASED = "jobs.id, org_id, fence, kind, state, dataset_version_id, base_model_id"


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed. ``retryable`` is False if a retry would fail in the same way."""

    code: str
    message: str
    retryable: bool = False
    param: str | None = None


LOST = Failure("lost", "The attempt's worker died.", retryable=True)


POISON = Failure(
    "poison",
    f"The job's worker died on {poison.NODES} nodes that live on, and no other job's did: the job brings its worker "
    "down. Most often it needs more memory than a worker has: lower batch_size or group_size. If something else was to "
    "blame, redrive the job.",
)


STOPPED_UNASKED = Failure("stopped", "The attempt stopped although nobody had asked it to.", retryable=True)


def heartbeat(
    session: Session, job_id: uuid.UUID, fence: int, *, lease_s: float, progressed: bool, events: Sequence[Event] = ()
) -> str:
    """Renew the lease of an attempt whose actor has answered, store what it reported, and return ``desired``.

    Raises:
        LeaseLostError: the job has another fence, or has ended. Stop the actor and write nothing.
    """
    row = session.execute(
        _HEARTBEAT,
        {"lease_s": lease_s, "progressed": progressed, "job": job_id, "fence": fence},
    ).one_or_none()
    if row is None:
        raise LeaseLostError(job_id, fence)
    if row.state != row.before:
        job_events.add(session, row.org_id, job_id, f"The job is {row.state}.")
    job_events.store(session, row.org_id, job_id, fence, events)
    return str(row.desired)


_HEARTBEAT = text(
    """
       UPDATE jobs SET lease_until = now() + make_interval(secs => :lease_s),
              progress_at = CASE WHEN :progressed THEN now() ELSE progress_at END,
              state = CASE WHEN desired <> 'run' THEN 'stopping'
                           WHEN state = 'starting' THEN 'running' ELSE state END
         FROM (SELECT id, state AS before FROM jobs WHERE id = :job FOR UPDATE) was
        WHERE jobs.id = was.id AND fence = :fence AND state IN ('starting', 'running', 'stopping')
    RETURNING desired, org_id, state, before
"""
)


def note_actor(session: Session, job_id: uuid.UUID, fence: int, actor_name: str) -> None:
    """Record which actor runs an attempt."""
    session.execute(
        update(Attempt).where(Attempt.job_id == job_id, Attempt.fence == fence).values(actor_name=actor_name)
    )


def succeed(session: Session, job_id: uuid.UUID, fence: int, *, trained_tokens: int | None = None) -> Succeeded:
    """Move an attempt's job to ``succeeded``; the caller writes the result in the same transaction.

    Raises:
        LeaseLostError: another attempt owns the job, or a cancellation was accepted first.
    """
    row = session.execute(
        _SUCCEED,
        {
            "job": job_id,
            "fence": fence,
            "tokens": trained_tokens,
            "event": new_id(),
            "tries": outbox.MAX_TRIES,
        },
    ).one_or_none()
    if row is None:
        raise LeaseLostError(job_id, fence)
    return Succeeded(*row)


# One statement for the job, its attempt and its webhooks: most jobs are short, and an agent ends one after the other.
_SUCCEED = text(f"""
    WITH changed AS (
        UPDATE jobs SET state = 'succeeded', finished_at = now(), lease_until = NULL, trained_tokens = :tokens
         WHERE id = :job AND fence = :fence AND state IN ('starting', 'running', 'stopping') AND desired <> 'cancel'
     RETURNING *
    ), ended AS (
        UPDATE attempts SET outcome = 'succeeded', message = NULL, ended_at = now()
          FROM changed WHERE attempts.job_id = changed.id AND attempts.fence = changed.fence
    ), told AS ({outbox.ANNOUNCE_JOBS.format(jobs="changed")})
    SELECT id, org_id, project_id, kind, expert_id, base_model_id, dataset_version_id FROM changed
""")


def fail(
    session: Session, job_id: uuid.UUID, fence: int, failure: Failure, *, outcome: str = "failed_user"
) -> Released:
    """End an attempt that failed, and queue its job again or fail it.

    ``outcome`` chooses the retry budget: ``failed_user`` is the user's; ``failed_infra`` and ``lost``, for lost actors
    and unreachable services, are the platform's. A failure that is not retryable ends the job at once.

    Raises:
        LeaseLostError: another attempt owns the job.
    """
    infra = outcome != "failed_user"
    limit = MAX_INFRA_FAILURES if infra else MAX_USER_FAILURES
    row = session.execute(
        text(
            f"""
            UPDATE jobs SET {RELEASE}
             WHERE id = :job AND fence = :fence AND state IN ('starting', 'running', 'stopping')
         RETURNING {RELEASED}
            """
        ),
        {
            "job": job_id,
            "fence": fence,
            "infra": int(infra),
            "limit": limit if failure.retryable else -1,
            "error": error_json(failure),
        },
    ).one_or_none()
    if row is None:
        raise LeaseLostError(job_id, fence)
    job = released(row, failure.message)
    end_attempt(session, job, outcome, failure.message)
    report_release(session, job)
    return job


def lose(
    session: Session, job_id: uuid.UUID, fence: int, *, died_on: str | None = None, nodes: Collection[str] = ()
) -> Released:
    """End an attempt whose worker has died.

    An attempt that was being preempted has left its worker, as requested: this is no failure. ``died_on`` is the node
    on which the worker died, ``nodes`` are the nodes that are alive: a job that is poison is not retried.

    Raises:
        LeaseLostError: another attempt owns the job.
    """
    leased = select(Job.desired, Job.lease_until > func.now()).where(Job.id == job_id, Job.fence == fence)
    desired, in_time = session.execute(leased).one_or_none() or (None, False)
    if not in_time:  # a worker whose leases have run out exits by itself: its end says nothing about the job
        died_on = None
    if died_on is not None:
        poison.note(session, job_id, fence, died_on)
    if desired == "preempt":
        return stopped(session, job_id, fence)
    if died_on is not None and is_poison(session, job_id, nodes):
        return fail(session, job_id, fence, POISON)
    return fail(session, job_id, fence, LOST, outcome="lost")


def preempt(session: Session, job_id: uuid.UUID, fence: int, message: str) -> None:
    """Ask an attempt to write a checkpoint and leave its worker, unless its job has another requested change."""
    org_id = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.state.in_(states.ACTIVE), Job.desired == "run")
        .values(desired="preempt")
        .returning(Job.org_id)
    )
    if org_id is not None:
        job_events.add(session, org_id, job_id, message, level="warn")


def stopped(session: Session, job_id: uuid.UUID, fence: int) -> Released:
    """End an attempt that stopped on request.

    A job that was resumed in the meantime is queued without a back-off. An attempt that stopped without a request is a
    failure of the platform: a retry without a budget could stop again at once, and for ever.

    Raises:
        LeaseLostError: another attempt owns the job.
    """
    row = session.execute(
        text(
            f"""
            UPDATE jobs SET lease_until = NULL,
                   state = CASE desired WHEN 'cancel' THEN 'cancelled' WHEN 'pause' THEN 'paused' ELSE 'queued' END,
                   finished_at = CASE WHEN desired = 'cancel' THEN now() END, not_before = NULL,
                   desired = CASE WHEN desired = 'preempt' THEN 'run' ELSE desired END
              FROM (SELECT id, desired AS requested FROM jobs WHERE id = :job FOR UPDATE) was
             WHERE jobs.id = was.id AND fence = :fence
               AND (state = 'stopping' OR state IN ('starting', 'running') AND desired <> 'run')
         RETURNING {RELEASED}, requested
            """
        ),
        {"job": job_id, "fence": fence},
    ).one_or_none()
    if row is None:
        return fail(session, job_id, fence, STOPPED_UNASKED, outcome="failed_infra")
    outcome = {"cancel": "cancelled", "preempt": "preempted"}.get(row.requested, "paused")
    job = released(row[:-1], f"The attempt was {outcome}.")
    end_attempt(session, job, outcome, None)
    report_state(session, job.org_id, job_id, job.state)
    return job


def report_state(session: Session, org_id: uuid.UUID, job_id: uuid.UUID, state: str) -> None:
    """Add a job's new state to its events and, if it has ended or is paused, to the outbox of webhooks."""
    job_events.add(session, org_id, job_id, f"The job is {state}.")
    if state in (*states.TERMINAL, states.PAUSED):
        outbox.announce_job(session, job_id)


# The new state of a job whose attempt did not succeed: a requested change comes first, then the retry budget, then a
# back-off of 1, 2, 4, … seconds, at most a minute. Needs :infra (0 or 1), :limit and :error.
RELEASE = """
    state = CASE WHEN desired = 'cancel' THEN 'cancelled' WHEN desired = 'pause' THEN 'paused'
                 WHEN (CASE WHEN :infra = 1 THEN infra_failures ELSE user_failures END) >= :limit THEN 'failed'
                 ELSE 'queued' END,
    finished_at = CASE WHEN desired = 'cancel' OR desired <> 'pause' AND
                 (CASE WHEN :infra = 1 THEN infra_failures ELSE user_failures END) >= :limit THEN now() END,
    error = CASE WHEN desired NOT IN ('cancel', 'pause') AND
                 (CASE WHEN :infra = 1 THEN infra_failures ELSE user_failures END) >= :limit
                 THEN cast(:error AS jsonb) END,
    desired = CASE WHEN desired = 'preempt' THEN 'run' ELSE desired END,
    not_before = now() + make_interval(secs => least(60, power(2, infra_failures + user_failures))),
    infra_failures = infra_failures + :infra, user_failures = user_failures + 1 - :infra,
    lease_until = NULL
"""


def released(row: Sequence[Any], reason: str) -> Released:
    """Build a Released from a row with the columns ``RELEASED``."""
    return Released._make([*row, reason])


def error_json(failure: Failure) -> str:
    return json.dumps({"code": failure.code, "message": failure.message, "param": failure.param})


def end_attempt(session: Session, job: Released, outcome: str, message: str | None) -> None:
    """Write how the attempt of a released job ended."""
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job.job_id, Attempt.fence == job.fence)
        .values(outcome=outcome, message=message, ended_at=func.now())
    )


def report_release(session: Session, job: Released) -> None:
    """Add to the events and the outbox what happened to a job whose attempt failed or was lost."""
    if job.state == states.FAILED:
        job_events.add(session, job.org_id, job.job_id, job.reason, level="error")
        outbox.announce_job(session, job.job_id)
    elif job.state == states.QUEUED:
        again = f"{job.reason.rstrip('.')}. The job will be tried again."
        job_events.add(session, job.org_id, job.job_id, again, level="warn")
    else:
        report_state(session, job.org_id, job.job_id, job.state)
