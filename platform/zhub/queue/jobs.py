"""The job protocol: every statement that moves a job, guarded by its fence.

A claim raises ``fence`` by one; every later write of that attempt names the fence and does nothing when it is
no longer the job's. Time is the database's clock. Functions take a Session and never commit.
"""

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import LeaseLostError, NotFoundError
from zhub.ids import new_id, public_id
from zhub.models import Attempt, BaseModel, DatasetVersion, Job
from zhub.process import tracing
from zhub.queue import job_events, poison
from zhub.queue.job_events import Event
from zhub.webhooks import endpoints

MAX_USER_FAILURES = 2  # retries of an unexpected error in the recipe itself
MAX_INFRA_FAILURES = 5  # retries after lost actors, lost agents, an unreachable store
PRIORITY_HEAD_START = timedelta(minutes=10)
LIGHT_KINDS = ("validate",)  # need no slot: they run beside training on a CPU worker


@dataclass(frozen=True)
class Claim:
    """A job that was just claimed: what to run, and under which fence."""

    job_id: uuid.UUID
    org_id: uuid.UUID
    fence: int
    kind: str
    spec: dict[str, Any]
    workers: int = 1
    """How many it is given: those that it asks for, or all that its agent has."""
    pack_key: str | None = None
    """Of the attempts that this one may share a worker with, see ``zhub.training.packing``; None: with none."""
    checkpoint: dict[str, Any] | None = None
    """``{"key_prefix", "digest", "step"}`` of the newest checkpoint, where an earlier attempt left one."""
    traceparent: str | None = None
    queued_s: float = field(default=0.0, compare=False)
    """Until its admission, since it could have been admitted first; 0 where nobody knows."""
    waited_s: float = field(default=0.0, compare=False)
    """Between its admission and this claim."""


class Succeeded(NamedTuple):
    """A job that has just succeeded, and what its result belongs to."""

    id: uuid.UUID
    org_id: uuid.UUID
    project_id: uuid.UUID
    kind: str
    expert_id: uuid.UUID | None
    base_model_id: uuid.UUID | None
    dataset_version_id: uuid.UUID | None


class Reaped(NamedTuple):
    """A job that was taken back, the fence of the attempt that lost it, and its next state."""

    job_id: uuid.UUID
    org_id: uuid.UUID
    fence: int
    state: str


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed. ``retryable`` is False where trying again must end the same way."""

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


def enqueue(session: Session, job: Job, message: str) -> None:
    """Add a job in the state ``queued``, with its first event, in the caller's transaction and trace."""
    # A priority is a head start and no more, so that what has a low one is late and never left behind.
    job.ranked_at = func.now() - (job.priority or 0) * PRIORITY_HEAD_START
    job.traceparent = tracing.traceparent()
    session.add(job)
    session.flush()
    job_events.add(session, job.org_id, job.id, message)


def get_job(session: Session, job_id: uuid.UUID) -> Job:
    """The job with this id among those that the session may see. Raises NotFoundError."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError("fine-tuning job", public_id("fine-tuning job", job_id))
    return job


def live(session: Session, project_id: uuid.UUID, dedup_key: str) -> Job | None:
    """The job of the project with this key that has not ended, if there is one."""
    return session.scalar(
        select(Job).where(Job.project_id == project_id, Job.dedup_key == dedup_key, Job.state.not_in(states.TERMINAL))
    )


def claim_up_to(
    session: Session,
    limit: int,
    agent_id: uuid.UUID,
    cluster: str,
    kinds: Sequence[str],
    *,
    lease_s: float,
    free: int = 1,
    packs: Collection[str] = (),
) -> list[Claim]:
    """Lease the first admitted jobs of these kinds, at most ``limit``. Two callers never get the same one.

    The caller commits before it starts anything, and renews each lease before ``lease_s`` seconds have passed. ``free``
    workers hold nothing, and the packs of the keys ``packs`` have room: jobs are leased in their order as far as they
    fit in. Where the first does not, nothing is, also where a later one would, so that a job that fits nowhere gets the
    next free workers: all that it takes, at once. A job that was lost before shares no more: it may be what brings
    workers down.
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
            "light": list(LIGHT_KINDS),
            "attempts": [new_id() for _ in range(limit)],
            "events": [new_id() for _ in range(limit)],
        },
    )
    return [Claim(*row) for row in rows]


# One statement, so that claims are one round trip: the jobs, their attempts, what owners are told, and where to go on.
_CLAIM = text("""
    WITH picked AS MATERIALIZED (
        SELECT id, admitted_at, least(workers, (SELECT slots FROM agents WHERE id = :agent)) AS takes FROM jobs
         WHERE state = 'admitted' AND desired = 'run' AND cluster = :cluster AND kind = ANY(:kinds)
         ORDER BY admitted_at, id LIMIT :limit FOR UPDATE SKIP LOCKED
    ), placed AS (
        SELECT id AS picked_id, takes, row_number() OVER up_to AS place, sum(takes) OVER up_to AS taken
          FROM picked WINDOW up_to AS (ORDER BY admitted_at, id)
    ), claimed AS (
        UPDATE jobs SET state = 'starting', fence = fence + 1, agent_id = :agent,
               lease_until = now() + make_interval(secs => :lease_s), progress_at = now(),
               started_at = coalesce(started_at, now())
          FROM placed
         WHERE id = picked_id AND state = 'admitted'
           AND (taken <= :free OR place = 1 AND infra_failures = 0 AND pack_key = ANY(:packs))
     RETURNING place, id, org_id, fence, kind, spec, takes AS workers,
               CASE infra_failures WHEN 0 THEN pack_key END AS pack_key, traceparent,
               greatest(0, extract(epoch FROM now() - admitted_at))::float AS waited_s,
               CASE WHEN fence = 1 OR not_before IS NOT NULL
                    THEN greatest(0, extract(epoch FROM admitted_at - greatest(created_at, not_before)))::float
                    ELSE 0 END AS queued_s
    ), attempt AS (
        INSERT INTO attempts (id, org_id, job_id, fence, agent_id, workers)
        SELECT (cast(:attempts AS uuid[]))[place], org_id, claimed.id, fence, :agent,
               CASE WHEN kind = ANY(:light) THEN 0
                    WHEN pack_key IS NULL THEN workers
                    ELSE 1.0 / coalesce(agents.jobs_per_worker, 1) END
          FROM claimed LEFT JOIN agents ON agents.id = :agent
    ), told AS (
        INSERT INTO job_events (id, org_id, job_id, level, type, message)
        SELECT (cast(:events AS uuid[]))[place], org_id, id, 'info', 'message', 'Attempt ' || fence || ' started.'
          FROM claimed
    )
    SELECT id, org_id, fence, kind, spec, workers, pack_key,
           (SELECT jsonb_build_object('key_prefix', c.key_prefix, 'digest', c.digest, 'step', c.step)
              FROM checkpoints c WHERE c.job_id = claimed.id AND c.deleted_at IS NULL
             ORDER BY c.step DESC LIMIT 1) AS checkpoint, traceparent, queued_s, waited_s
      FROM claimed ORDER BY place
""")


def heartbeat(
    session: Session, job_id: uuid.UUID, fence: int, *, lease_s: float, progressed: bool, events: Sequence[Event] = ()
) -> str:
    """Renew the lease of an attempt whose actor has answered, store what it reported, and return ``desired``.

    Raises:
        LeaseLostError: the fence is not the job's any more: stop the actor, write nothing.
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
        LeaseLostError: another attempt owns the job, or its cancellation was accepted first.
    """
    row = session.execute(
        _SUCCEED,
        {
            "job": job_id,
            "fence": fence,
            "tokens": trained_tokens,
            "event": new_id(),
            "tries": endpoints.MAX_TRIES,
        },
    ).one_or_none()
    if row is None:
        raise LeaseLostError(job_id, fence)
    return Succeeded(*row)


# One statement, because most jobs are short and all of an agent's wait for it: the job, its attempt, and who is told.
_SUCCEED = text(f"""
    WITH changed AS (
        UPDATE jobs SET state = 'succeeded', finished_at = now(), lease_until = NULL, trained_tokens = :tokens
         WHERE id = :job AND fence = :fence AND state IN ('starting', 'running', 'stopping') AND desired <> 'cancel'
     RETURNING *
    ), ended AS (
        UPDATE attempts SET outcome = 'succeeded', message = NULL, ended_at = now()
          FROM changed WHERE attempts.job_id = changed.id AND attempts.fence = changed.fence
    ), told AS ({endpoints.ANNOUNCE_JOBS.format(jobs="changed")})
    SELECT id, org_id, project_id, kind, expert_id, base_model_id, dataset_version_id FROM changed
""")


def fail(session: Session, job_id: uuid.UUID, fence: int, failure: Failure, *, outcome: str = "failed_user") -> str:
    """End an attempt that failed, and return the job's next state.

    ``outcome`` says whose budget pays: ``failed_user`` or, for lost actors and unreachable parts,
    ``failed_infra`` and ``lost``. A failure that is not retryable ends the job at once.

    Raises:
        LeaseLostError: another attempt owns the job.
    """
    infra = outcome != "failed_user"
    limit = MAX_INFRA_FAILURES if infra else MAX_USER_FAILURES
    row = session.execute(
        text(
            f"""
            UPDATE jobs SET {_RELEASE}
             WHERE id = :job AND fence = :fence AND state IN ('starting', 'running', 'stopping')
         RETURNING id, org_id, state
            """
        ),
        {
            "job": job_id,
            "fence": fence,
            "infra": int(infra),
            "limit": limit if failure.retryable else -1,
            "error": _error_json(failure),
        },
    ).one_or_none()
    if row is None:
        raise LeaseLostError(job_id, fence)
    _end_attempt(session, job_id, fence, outcome, failure.message)
    _report_release(session, row.org_id, job_id, fence, row.state, failure.message)
    return str(row.state)


def lose(
    session: Session, job_id: uuid.UUID, fence: int, *, died_on: str | None = None, nodes: Collection[str] = ()
) -> str:
    """End an attempt whose worker is gone, and return the job's next state.

    One that had been asked to leave its worker has left it, and pays nothing. ``died_on`` is the node where the worker
    was seen to die, ``nodes`` are those that live: a job that brings down one worker after another is not tried again.

    Raises:
        LeaseLostError: another attempt owns the job.
    """
    leased = select(Job.desired, Job.lease_until > func.now()).where(Job.id == job_id, Job.fence == fence)
    desired, in_time = session.execute(leased).one_or_none() or (None, False)
    if not in_time:  # a worker whose leases have run out ends by itself
        died_on = None
    if died_on is not None:
        poison.note(session, job_id, fence, died_on)
    if desired == "preempt":
        return stopped(session, job_id, fence)
    if died_on is not None and poison.found(session, job_id, nodes):
        return fail(session, job_id, fence, POISON)
    return fail(session, job_id, fence, LOST, outcome="lost")


def preempt(session: Session, job_id: uuid.UUID, fence: int, message: str) -> None:
    """Ask an attempt to leave its worker with a checkpoint, where nothing else is wanted of its job."""
    org_id = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.state.in_(states.ACTIVE), Job.desired == "run")
        .values(desired="preempt")
        .returning(Job.org_id)
    )
    if org_id is not None:
        job_events.add(session, org_id, job_id, message, level="warn")


def stopped(session: Session, job_id: uuid.UUID, fence: int) -> str:
    """End an attempt whose actor stopped because it was asked to; return the job's next state.

    A job that is wanted again by then is queued without a back-off. An attempt that stopped although nobody had
    asked it is a failure of the platform: it would stop again at once, and for ever.

    Raises:
        LeaseLostError: another attempt owns the job.
    """
    row = session.execute(
        text(
            """
            UPDATE jobs SET lease_until = NULL,
                   state = CASE desired WHEN 'cancel' THEN 'cancelled' WHEN 'pause' THEN 'paused' ELSE 'queued' END,
                   finished_at = CASE WHEN desired = 'cancel' THEN now() END, not_before = NULL,
                   desired = CASE WHEN desired = 'preempt' THEN 'run' ELSE desired END
              FROM (SELECT id, desired AS wanted FROM jobs WHERE id = :job FOR UPDATE) was
             WHERE jobs.id = was.id AND fence = :fence
               AND (state = 'stopping' OR state IN ('starting', 'running') AND desired <> 'run')
         RETURNING org_id, state, wanted
            """
        ),
        {"job": job_id, "fence": fence},
    ).one_or_none()
    if row is None:
        return fail(session, job_id, fence, STOPPED_UNASKED, outcome="failed_infra")
    outcome = {"cancel": "cancelled", "preempt": "preempted"}.get(row.wanted, "paused")
    _end_attempt(session, job_id, fence, outcome, None)
    report_state(session, row.org_id, job_id, row.state)
    return str(row.state)


def reap(session: Session) -> list[Reaped]:
    """Take back every job whose lease has run out; return them. The leader calls this."""
    rows = session.execute(
        text(
            f"""
            UPDATE jobs SET {_RELEASE}
             WHERE id IN (SELECT id FROM jobs WHERE lease_until < now() ORDER BY lease_until LIMIT 100
                          FOR UPDATE SKIP LOCKED)
         RETURNING id, org_id, fence, state
            """
        ),
        {
            "infra": 1,
            "limit": MAX_INFRA_FAILURES,
            "error": _error_json(Failure("lost", "The job was lost too often: no worker kept answering.")),
        },
    ).all()
    for row in rows:
        message = f"Attempt {row.fence} was lost: its lease ran out."
        _end_attempt(session, row.id, row.fence, "lost", message)
        _report_release(session, row.org_id, row.id, row.fence, row.state, message)
    return [Reaped(*row) for row in rows]


def report_state(session: Session, org_id: uuid.UUID, job_id: uuid.UUID, state: str) -> None:
    """Tell a job's new state to its events and, where it has ended or is paused, to webhooks."""
    job_events.add(session, org_id, job_id, f"The job is {state}.")
    if state in (*states.TERMINAL, states.PAUSED):
        endpoints.announce_job(session, job_id)


# How an attempt that did not succeed gives its job back: the user's wish first, then the retry budget,
# then a back-off of 1, 2, 4, … seconds, at most a minute. Needs :infra (0 or 1), :limit and :error.
_RELEASE = """
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


def _error_json(failure: Failure) -> str:
    return json.dumps({"code": failure.code, "message": failure.message, "param": failure.param})


def _end_attempt(session: Session, job_id: uuid.UUID, fence: int, outcome: str, message: str | None) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.fence == fence)
        .values(outcome=outcome, message=message, ended_at=func.now())
    )


def _fail_dependents(session: Session, job_id: uuid.UUID, message: str) -> None:
    """What waits for a job that has failed says so, instead of waiting for ever."""
    job = get_job(session, job_id)
    if job.kind == "validate":
        session.execute(
            update(DatasetVersion)
            .where(DatasetVersion.id == job.dataset_version_id)
            .values(status="error", status_details=f"The file could not be validated: {message}")
        )
    elif job.kind == "decompose":
        failed = {"status": "error", "error": message}
        session.execute(update(BaseModel).where(BaseModel.id == job.base_model_id).values(failed))


def _report_release(
    session: Session, org_id: uuid.UUID, job_id: uuid.UUID, fence: int, state: str, message: str
) -> None:
    if state == states.FAILED:
        job_events.add(session, org_id, job_id, message, level="error")
        endpoints.announce_job(session, job_id)
        _fail_dependents(session, job_id, message)
    elif state == states.QUEUED:
        job_events.add(session, org_id, job_id, f"{message.rstrip('.')}. The job will be tried again.", level="warn")
    else:
        report_state(session, org_id, job_id, state)
