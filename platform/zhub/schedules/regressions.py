"""Regressions: a schedule fires where an evaluation finds the version that answers worse than its base.

The rewards are read in one transaction, compared without one, because a comparison takes a tenth of a second, and the
verdicts are recorded in another, under a lock on the schedule's row. Each evaluation gets a tick, whatever its verdict.
Functions take a Session and never commit.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from zhub.evaluation.comparison import Verdict, compare
from zhub.models import Evaluation, Schedule
from zhub.schedules import firing

# For one pair of transactions. The next call takes the rest.
MAX_COMPARISONS = 10

log = logging.getLogger("zhub.ticks")

# Evaluations, without a tick so far, of the version to which the alias of schedule ``s`` points, each with the
# evaluation of its base on the same suite.
_MEASURED = """
    SELECT e.id, b.id AS base_id FROM aliases a
      JOIN evaluations e ON e.version_id = a.version_id AND e.project_id = s.project_id AND e.rewards IS NOT NULL
      JOIN evaluations b ON b.project_id = e.project_id AND b.base_model_id = e.base_model_id AND b.version_id IS NULL
                        AND b.release_version_id IS NULL AND b.suite_digest = e.suite_digest AND b.rewards IS NOT NULL
     WHERE a.id = s.watched_alias_id AND NOT EXISTS (
           SELECT 1 FROM schedule_ticks t
            WHERE t.schedule_id = s.id AND t.key = 'regression:' || replace(e.id::text, '-', ''))
"""
_WATCHING = f"""
    SELECT s.id FROM schedules s
     WHERE s.deleted_at IS NULL AND s.paused_because IS NULL AND s.watched_alias_id IS NOT NULL
       AND EXISTS (SELECT 1 FROM ({_MEASURED}) m)
     ORDER BY s.id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_OF_SCHEDULE = f"""
    SELECT m.* FROM schedules s CROSS JOIN LATERAL ({_MEASURED}) m WHERE s.id = :schedule ORDER BY m.id LIMIT :most
"""


@dataclass(frozen=True)
class Measured:
    """An evaluation of the version that answers, by its rewards and those of its base on the same rows."""

    evaluation_id: uuid.UUID
    rewards: tuple[float, ...]
    base_rewards: tuple[float, ...]


@dataclass(frozen=True)
class Watched:
    """A schedule, and the evaluations that it has no tick for yet."""

    schedule_id: uuid.UUID
    measured: Sequence[Measured]


def next_watched(session: Session) -> Watched | None:
    """A schedule with evaluations to compare, and not one that another scheduler records now; None if there is none."""
    schedule_id = session.scalar(text(_WATCHING))
    if schedule_id is None:
        return None
    rows = session.execute(text(_OF_SCHEDULE), {"schedule": schedule_id, "most": MAX_COMPARISONS}).all()
    ids = {row.id for row in rows} | {row.base_id for row in rows}
    statement = select(Evaluation.id, Evaluation.rewards).where(Evaluation.id.in_(ids))
    rewards = {evaluation_id: tuple(of_rows or ()) for evaluation_id, of_rows in session.execute(statement)}
    return Watched(schedule_id, [Measured(row.id, rewards[row.id], rewards[row.base_id]) for row in rows])


def verdicts_of(watched: Watched) -> dict[uuid.UUID, Verdict] | None:
    """Each evaluation's verdict, without a session. None where comparing failed; the log says why."""
    try:
        return {one.evaluation_id: compare(one.rewards, one.base_rewards).verdict for one in watched.measured}
    except Exception:
        log.exception("schedule %s", watched.schedule_id, extra={"action": "schedule_failed"})
        return None


def record(session: Session, watched: Watched, verdicts: Mapping[uuid.UUID, Verdict] | None) -> None:
    """Fire for each regression, and note the other verdicts. A schedule whose evaluations cannot be compared is paused.

    Nothing is recorded where the schedule was paused or deleted meanwhile, where another scheduler holds it, or of an
    evaluation of a version that the alias has left.
    """
    unchanged = (Schedule.id == watched.schedule_id, Schedule.paused_because.is_(None), Schedule.deleted_at.is_(None))
    schedule = session.scalar(select(Schedule).where(*unchanged).with_for_update(skip_locked=True))
    if schedule is None:
        return
    if verdicts is None:
        message = "zhub failed to compare an evaluation with its base; its log says why."
        session.execute(update(Schedule).where(*unchanged).values(paused_because=message))
        return
    rows = session.execute(text(_OF_SCHEDULE), {"schedule": schedule.id, "most": MAX_COMPARISONS}).all()
    for row in rows:
        if row.id in verdicts:
            firing.fire_regression(session, schedule, row.id, verdicts[row.id])
