"""Feedback: how good single answers of an expert were, in the words of its users.

A piece is about one expert version. It adds to the count of its expert when it is created, and schedules fire by that
count (``zhub.schedules.firing``). With a reference, the right answer, it can become a row of a dataset. Functions
take a Session and never commit.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import ColumnElement, Text, cast, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from zhub.completions import ratings, settings
from zhub.database.pages import Page, created_since, read_page
from zhub.datasets import rows as dataset_rows
from zhub.errors import InvalidRequestError, NotFoundError, NotReadyError
from zhub.ids import public_id
from zhub.models import Expert, ExpertVersion, Feedback
from zhub.registry import versions as registry
from zhub.registry.names import CHECKPOINT_NAME
from zhub.tenancy import idempotency
from zhub.tenancy.keys import Caller

SWEEP_BATCH = 1000


class PromptMessage(Schema):
    """One message of a prompt, as a row of a dataset has it."""

    role: str
    content: str


class FeedbackRequest(Schema):
    """How good one answer was. As a whole it must not be longer than a row of a dataset may be."""

    model_config = ConfigDict(extra="forbid")
    model: str
    """The expert version that answered, or an alias: then the version that it points to now."""
    messages: list[PromptMessage]
    """The prompt: it ends where the answer begins."""
    completion: str
    """The answer that was given."""
    score: Annotated[float, Field(strict=True, ge=-1, le=1)]
    """1 is as good as can be, -1 as bad."""
    reference: str | None = None
    """The answer that would have been right."""
    comment: str | None = None


@dataclass(frozen=True)
class Summary:
    """How much feedback there is on a version, and its mean score."""

    count: int
    mean_score: float | None


def create(session: Session, caller: Caller, request: FeedbackRequest, *, idempotency_key: str | None) -> Feedback:
    """Store a piece of feedback, and add it to the count of its expert.

    Raises:
        InvalidRequestError: with the ``param`` at fault.
        NotFoundError: no such version.
        IdempotencyMismatchError: the key came with another body before.
        NotReadyError: a request with the same key is being answered.
    """
    prompt = _prompt(request)
    request_hash = idempotency.hash_of(request)
    if idempotency_key is not None:
        earlier = idempotency.made_before(
            session, caller, Feedback, idempotency_key, request_hash, otherwise="other feedback"
        )
        if earlier is not None:
            return earlier
    record = _version(session, caller, request.model)
    piece = Feedback(
        org_id=caller.org_id,
        project_id=caller.project_id,
        version_id=record.version.id,
        messages=prompt,
        **request.model_dump(include={"completion", "score", "reference", "comment"}),
        request_hash=request_hash,
        idempotency_key=idempotency_key,
    )
    insert(session, piece)
    count(session, record.expert.id)
    return piece


def insert(session: Session, piece: Feedback) -> None:
    """Write a piece of feedback.

    Raises:
        NotReadyError: a request with the same key is being answered.
    """
    session.add(piece)
    try:
        session.flush()
    except IntegrityError as exc:
        if piece.idempotency_key is None:
            raise
        # Its only unique value is the key: another request with it was committed after our look.
        raise NotReadyError("A request with this Idempotency-Key is being answered; try again.") from exc
    session.refresh(piece)


def count(session: Session, expert_id: uuid.UUID) -> None:
    """Add a piece to the count of an expert. Last: the publication of a version waits for the lock on its row."""
    counted = update(Expert).where(Expert.id == expert_id)
    session.execute(counted.values(feedback_count=Expert.feedback_count + 1))


@dataclass(frozen=True)
class FeedbackFilter:
    """Which feedback; an attribute that is None matches all."""

    model: str | None = None
    """An expert, ``<project>.<expert>``, or one version of it."""
    min_score: float | None = None
    max_score: float | None = None
    since: datetime | None = None
    completion_id: uuid.UUID | None = None
    """Feedback on this stored completion."""
    search: str | None = None
    """A text in the prompt, the answer, the right answer or the comment; letters of both cases are equal."""


def list_feedback(session: Session, caller: Caller, wanted: FeedbackFilter, page: Page) -> tuple[list[Feedback], bool]:
    """The project's feedback that ``wanted`` describes, and whether more follows.

    Raises:
        NotFoundError: no such expert or version.
    """
    rows = select(Feedback).where(Feedback.project_id == caller.project_id, Feedback.deleted_at.is_(None))
    if wanted.model is not None and "@" in wanted.model:
        version = registry.get_version(session, caller.project_id, wanted.model).version
        rows = rows.where(Feedback.version_id == version.id)
    elif wanted.model is not None:
        expert = registry.get_expert(session, caller, wanted.model)
        versions = select(ExpertVersion.id).where(ExpertVersion.expert_id == expert.id)
        rows = rows.where(Feedback.version_id.in_(versions))
    if wanted.min_score is not None:
        rows = rows.where(Feedback.score >= wanted.min_score)
    if wanted.max_score is not None:
        rows = rows.where(Feedback.score <= wanted.max_score)
    if wanted.since is not None:
        rows = rows.where(created_since(Feedback.created_at, Feedback.id, wanted.since))
    if wanted.completion_id is not None:
        rows = rows.where(Feedback.completion_id == wanted.completion_id)
    return read_page(session, rows, Feedback.id, page, search=_mentions(wanted.search) if wanted.search else None)


def _mentions(words: str) -> ColumnElement[bool]:
    texts = (cast(Feedback.messages, Text), Feedback.completion, Feedback.reference, Feedback.comment)
    return or_(*(text.icontains(words, autoescape=True) for text in texts))


def summaries(session: Session, version_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Summary]:
    """For each of these versions, how much feedback there is and its mean score."""
    statement = (
        select(Feedback.version_id, func.count(), func.avg(Feedback.score))
        .where(Feedback.version_id.in_(version_ids), Feedback.deleted_at.is_(None))
        .group_by(Feedback.version_id)
    )
    by_version = {version_id: Summary(count, mean) for version_id, count, mean in session.execute(statement)}
    return {version_id: by_version.get(version_id, Summary(0, None)) for version_id in version_ids}


def delete_feedback(session: Session, caller: Caller, feedback_id: uuid.UUID) -> None:
    """Hide a piece of feedback; the sweep removes it. The count of its expert does not fall.

    Raises:
        NotFoundError: the project has no such piece, or it was deleted before.
    """
    hidden = (
        update(Feedback)
        .where(Feedback.id == feedback_id, Feedback.project_id == caller.project_id, Feedback.deleted_at.is_(None))
        .values(deleted_at=func.now())
        .returning(Feedback.id, Feedback.completion_id)
    )
    settings.lock(session, caller.project_id)
    row = session.execute(hidden).one_or_none()
    if row is None:
        raise NotFoundError("feedback", public_id("feedback", feedback_id))
    if row.completion_id is not None:
        ratings.rate_again(session, row.completion_id)


def sweep(session: Session) -> int:
    """Remove deleted feedback, at most SWEEP_BATCH pieces; return how many. Two sweeps at once do no harm."""
    due = select(Feedback.id).where(Feedback.deleted_at.is_not(None)).limit(SWEEP_BATCH)
    return len(session.scalars(delete(Feedback).where(Feedback.id.in_(due)).returning(Feedback.id)).all())


def _prompt(request: FeedbackRequest) -> list[dict[str, str]]:
    """The messages, after a check that the request could be a row of a dataset."""
    raw = json.dumps(request.model_dump()).encode()
    if len(raw) > dataset_rows.MAX_ROW_BYTES:
        raise InvalidRequestError(
            f"The feedback has {len(raw):,} bytes as JSON, and a row of a dataset at most "
            f"{dataset_rows.MAX_ROW_BYTES:,}. Shorten its texts."
        )
    try:
        row = dataset_rows.parse_row(1, raw)
    except dataset_rows.RowSyntaxError as exc:
        param = "messages" if exc.code == "wrong_schema" else None
        raise InvalidRequestError(f"Feedback must be fit to become a row of a dataset: {exc}.", param=param) from exc
    if row.target is not None:
        raise InvalidRequestError(
            "messages: they must end before the answer, with the user's message; the answer is 'completion'.",
            param="messages",
        )
    return row.messages


def _version(session: Session, caller: Caller, model: str) -> registry.VersionRecord:
    if "@" not in model or CHECKPOINT_NAME.fullmatch(model):
        raise InvalidRequestError(
            f"model: feedback is about one expert version, and '{model}' is none. Name it as <project>.<expert>@v3 or "
            "by its alias. An answer of 'auto' or of a mixture says under 'experts' which versions gave it.",
            param="model",
        )
    return registry.get_version(session, caller.project_id, model)
