"""The rating of a stored completion: what the feedback on it comes to. Functions take a Session and never commit."""

import uuid

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from zhub.models import CompletionSettings, Feedback, StoredCompletion


def rate_again(session: Session, completion_id: uuid.UUID) -> None:
    """Write the mean score of the best-rated choice beside the completion. The caller has locked the settings' row."""
    mean = func.avg(Feedback.score)
    best = session.execute(
        select(Feedback.choice, mean)
        .where(Feedback.completion_id == completion_id, Feedback.deleted_at.is_(None))
        .group_by(Feedback.choice)
        .order_by(mean.desc(), Feedback.choice)
        .limit(1)
    ).one_or_none()
    choice, rating = (None, None) if best is None else best
    rated = update(StoredCompletion).where(StoredCompletion.id == completion_id)
    session.execute(rated.values(rating=rating, rated_choice=choice))


def count_change(session: Session, row: CompletionSettings, completion_id: uuid.UUID) -> None:
    """Make this the newest change of the project's completions, for schedules that count them. ``row`` is locked."""
    row.changes += 1
    session.flush()
    changed = update(StoredCompletion).where(StoredCompletion.id == completion_id)
    session.execute(changed.values(change=row.changes))
