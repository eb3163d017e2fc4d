"""Stored completions, found, labelled, deleted and swept. Functions take a Session and never commit."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from zhub.completions import settings
from zhub.database.pages import Page, read_page
from zhub.errors import NotFoundError
from zhub.ids import public_id
from zhub.models import CompletionSettings, Feedback, StoredCompletion
from zhub.tenancy.keys import Caller

SWEEP_BATCH = 500
KIND = "stored completion"


@dataclass(frozen=True)
class CompletionFilter:
    """Which stored completions; an attribute that is None matches all."""

    model: str | None = None
    """As it was asked for."""
    metadata: Mapping[str, str] | None = None
    """All of these pairs."""


def visible(session: Session, project_id: uuid.UUID) -> Select[StoredCompletion]:
    """The project's stored completions that are not deleted, and are to be kept still."""
    rows = select(StoredCompletion).where(
        StoredCompletion.project_id == project_id, StoredCompletion.deleted_at.is_(None)
    )
    since = settings.visible_from(session, project_id)
    return rows if since is None else rows.where(StoredCompletion.created_at > since)


def list_completions(
    session: Session, caller: Caller, wanted: CompletionFilter, page: Page
) -> tuple[list[StoredCompletion], bool]:
    """The project's stored completions that ``wanted`` describes, and whether more follow."""
    rows = visible(session, caller.project_id)
    if wanted.model is not None:
        rows = rows.where(StoredCompletion.model == wanted.model)
    if wanted.metadata:
        rows = rows.where(StoredCompletion.labels.contains(dict(wanted.metadata)))
    return read_page(session, rows, StoredCompletion.id, page)


def get(session: Session, project_id: uuid.UUID, completion_id: uuid.UUID) -> StoredCompletion:
    """The stored completion with this id in the project. Raises NotFoundError."""
    row = session.scalar(visible(session, project_id).where(StoredCompletion.id == completion_id))
    if row is None:
        raise NotFoundError(KIND, public_id(KIND, completion_id))
    return row


def label(session: Session, completion: StoredCompletion, labels: Mapping[str, str]) -> None:
    """Replace all of its labels."""
    session.execute(update(StoredCompletion).where(StoredCompletion.id == completion.id).values(labels=dict(labels)))
    session.refresh(completion)


def delete_completion(session: Session, completion: StoredCompletion) -> None:
    """Hide it with the feedback on it; the sweep removes both. A dataset that was made of it stays as it is."""
    session.execute(update(StoredCompletion).where(StoredCompletion.id == completion.id).values(deleted_at=func.now()))
    hide_feedback = update(Feedback).where(Feedback.completion_id == completion.id, Feedback.deleted_at.is_(None))
    session.execute(hide_feedback.values(deleted_at=func.now()))


def feedback_counts(session: Session, completions: Sequence[StoredCompletion]) -> dict[uuid.UUID, int]:
    """How many pieces of feedback each of these has, where it has any."""
    ids = [completion.id for completion in completions]
    counted = (
        select(Feedback.completion_id, func.count())
        .where(Feedback.completion_id.in_(ids), Feedback.deleted_at.is_(None))
        .group_by(Feedback.completion_id)
    )
    return {completion_id: count for completion_id, count in session.execute(counted) if completion_id is not None}


def models(session: Session, completion_ids: Sequence[uuid.UUID | None]) -> dict[uuid.UUID | None, str]:
    """What each of these was asked of."""
    rows = select(StoredCompletion.id, StoredCompletion.model).where(StoredCompletion.id.in_(completion_ids))
    return dict(session.execute(rows).all())


def sweep(session: Session) -> int:
    """Remove completions of one project that are deleted or have been kept long enough, at most SWEEP_BATCH.

    Their feedback is removed with them. Returns how many; zero when no project has any left. The session must see all
    tenants. Two sweeps at once do no harm.
    """
    row = _with_something_due(session)
    if row is None:
        return 0
    ids = _due_ids(session, row)
    session.execute(delete(Feedback).where(Feedback.completion_id.in_(ids)))
    removed = delete(StoredCompletion).where(StoredCompletion.id.in_(ids)).returning(StoredCompletion.size_bytes)
    sizes = session.scalars(removed).all()
    row.stored_bytes -= sum(sizes)
    session.flush()
    return len(sizes)


# Two conditions, each of which is one look at an index, however many completions a project has.
_DELETED = and_(StoredCompletion.project_id == CompletionSettings.project_id, StoredCompletion.deleted_at.is_not(None))
_OVER = and_(
    StoredCompletion.project_id == CompletionSettings.project_id,
    StoredCompletion.created_at
    <= func.greatest(
        func.now() - func.make_interval(0, 0, 0, CompletionSettings.kept_days), CompletionSettings.cleared_at
    ),
)


def _with_something_due(session: Session) -> CompletionSettings | None:
    """The settings, locked, of a project that has completions to remove."""
    has_due = or_(*(select(StoredCompletion.id).where(due).exists() for due in (_DELETED, _OVER)))
    project_id = session.scalar(select(CompletionSettings.project_id).where(has_due).limit(1))
    return None if project_id is None else settings.lock(session, project_id)


def _due_ids(session: Session, row: CompletionSettings) -> list[uuid.UUID]:
    """Some of the completions of a project that are to be removed."""
    for due in (_DELETED, _OVER):
        ids = select(StoredCompletion.id).join(CompletionSettings, due).where(CompletionSettings.id == row.id)
        if batch := list(session.scalars(ids.limit(SWEEP_BATCH))):
            return batch
    return []
