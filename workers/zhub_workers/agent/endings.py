"""What an agent records when an attempt ends other than by success."""

from collections.abc import Callable

from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from zhub.kinds import outcomes
from zhub.queue import attempts
from zhub_workers.agent.followed import CLUSTER_STOPS
from zhub_workers.attempts.attempt import AttemptKey
from zhub_workers.attempts.worker import INFRASTRUCTURE

Recorder = Callable[[Session], str]
"""Writes the end of an attempt and returns its job's next state."""
# A worker's report is malformed, or holds a value that PostgreSQL cannot store: NUL, NaN, half of a surrogate pair.
UNRECORDABLE = (DataError, IntegrityError, ValueError, KeyError)
STALLED = attempts.Failure("stalled", "The attempt made no progress for too long and was stopped.", retryable=True)


def record_failure(session: Session, key: AttemptKey, failure: attempts.Failure) -> str:
    """Write an attempt's failure, counted as the user's or the platform's; return the job's next state."""
    infra = failure.code in INFRASTRUCTURE
    return outcomes.record_failure(session, *key, failure, outcome="failed_infra" if infra else "failed_user")


def record_release(session: Session, key: AttemptKey) -> str:
    """Queue the job of an attempt again that did not leave its worker in time; return the job's next state."""
    attempts.preempt(session, *key, CLUSTER_STOPS)
    return outcomes.record_stop(session, *key)
