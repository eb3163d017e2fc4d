"""Feedback on a stored completion: the answer is the sample, so it says only how good that was.

Functions take a Session and never commit.
"""

import uuid
from typing import Annotated

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from zhub.completions import listing, ratings, settings, texts
from zhub.completions.listing import KIND
from zhub.completions.redaction import redacted
from zhub.datasets.rows import MAX_ROW_BYTES
from zhub.errors import InvalidRequestError
from zhub.evaluation import feedback
from zhub.ids import public_id
from zhub.models import ExpertVersion, Feedback
from zhub.tenancy import idempotency
from zhub.tenancy.keys import Caller


class RatingRequest(Schema):
    """How good one choice of a stored completion was."""

    model_config = ConfigDict(extra="forbid")
    score: Annotated[float, Field(strict=True, ge=-1, le=1)]
    """1 is as good as can be, -1 as bad."""
    choice: Annotated[int, Field(strict=True, ge=0)] = 0
    """Which of the answers, by its index."""
    reference: Annotated[str, Field(max_length=MAX_ROW_BYTES // 4)] | None = None
    """The answer that would have been right."""
    comment: Annotated[str, Field(max_length=10_000)] | None = None


class _Identified(RatingRequest):
    completion_id: str


def rate(
    session: Session,
    caller: Caller,
    completion_id: uuid.UUID,
    request: RatingRequest,
    *,
    idempotency_key: str | None,
) -> Feedback:
    """Store feedback on a choice of a completion, and what the completion is rated with it.

    It counts as feedback on the expert version that answered, where it was one alone.

    Raises:
        NotFoundError: the project has no such completion.
        InvalidRequestError: there is no such choice.
        IdempotencyMismatchError: the key came with another body before.
        NotReadyError: a request with the same key is being answered.
    """
    identified = _Identified(completion_id=public_id(KIND, completion_id), **request.model_dump())
    request_hash = idempotency.hash_of(identified)
    if idempotency_key is not None:
        earlier = idempotency.made_before(
            session, caller, Feedback, idempotency_key, request_hash, otherwise="other feedback"
        )
        if earlier is not None:
            return earlier
    row = settings.lock(session, caller.project_id)
    completion = listing.get(session, caller.project_id, completion_id)
    assert row is not None  # where a completion was stored
    choices = completion.answer["choices"]
    if request.choice >= len(choices):
        raise InvalidRequestError(
            f"choice: {identified.completion_id} has {len(choices)} of them, counted from 0.", param="choice"
        )
    piece = Feedback(
        org_id=caller.org_id,
        project_id=caller.project_id,
        version_id=completion.version_id,
        completion_id=completion.id,
        choice=request.choice,
        messages=texts.prompt(completion),
        completion=texts.plain(choices[request.choice]["message"]),
        score=request.score,
        reference=redacted(request.reference, row.redactors),
        comment=redacted(request.comment, row.redactors),
        request_hash=request_hash,
        idempotency_key=idempotency_key,
    )
    feedback.insert(session, piece)
    ratings.rate_again(session, completion.id)
    ratings.count_change(session, row, completion.id)
    if completion.version_id is not None:
        feedback.count(session, session.get_one(ExpertVersion, completion.version_id).expert_id)
    return piece
