"""Schedules that fire by stored completions: they make a version of their dataset, which is new data to train on.

Each change of a project's completions, stored or rated, has a number (``StoredCompletion.change``). A schedule counts
those after the last one that it has seen. Functions take a Session and never commit.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub.completions import conditions, listing
from zhub.errors import InvalidRequestError
from zhub.models import CompletionSettings, Schedule, StoredCompletion
from zhub.tenancy.keys import Caller

MAX_COUNTED = 10_000  # changes in one look


def check(
    session: Session, caller: Caller, on_completions: int | None, where: str | None, *, on_new_data: bool
) -> None:
    """Refuse a trigger that could not fire.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError: a condition names an expert that is not there.
    """
    if on_completions is None:
        if where is not None:
            raise InvalidRequestError(
                "completions_where: say with 'on_completions' at how many of them it fires.", param="on_completions"
            )
        return
    if not on_new_data:
        raise InvalidRequestError(
            "on_completions: it makes a new version of the dataset; set 'on_new_data' to true to train on that.",
            param="on_new_data",
        )
    try:
        conditions.as_sql(session, caller, conditions.parse(where or ""))
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"completions_{exc}", param="completions_where") from exc


def begin(session: Session, schedule: Schedule) -> None:
    """Count from now on: what has come before does not count."""
    schedule.completions_seen = _changes(session, schedule)
    schedule.completions_new = 0


def count(session: Session, caller: Caller, schedule: Schedule) -> None:
    """Count the completions that have come since the last look and that the schedule's query describes.

    Raises:
        InvalidRequestError, NotFoundError: the query cannot be read any more.
    """
    until = min(_changes(session, schedule), schedule.completions_seen + MAX_COUNTED)
    described = conditions.as_sql(session, caller, conditions.parse(schedule.completions_where or ""))
    new = listing.visible(session, schedule.project_id).where(
        StoredCompletion.change > schedule.completions_seen, StoredCompletion.change <= until, *described
    )
    schedule.completions_new += session.scalars(select(func.count()).select_from(new.subquery())).one()
    schedule.completions_seen = until


def _changes(session: Session, schedule: Schedule) -> int:
    changes = select(CompletionSettings.changes).where(CompletionSettings.project_id == schedule.project_id)
    return session.scalar(changes) or 0
