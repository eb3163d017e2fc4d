"""``/v1/feedback``: how good the answers of experts were, by their users."""

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from sqlalchemy.orm import Session

from zhub.completions import listing
from zhub.database.sessions import tenant_session
from zhub.evaluation import feedback
from zhub.evaluation.feedback import FeedbackFilter
from zhub.ids import parse_id, public_id
from zhub.models import Feedback
from zhub.registry import versions
from zhub.tenancy import audit
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import Order, PageLimit, Search, Since, moment, page, wanted_page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/feedback")

Score = Annotated[float | None, Query(ge=-1, le=1)]


@router.post("", dependencies=[needs("chat")])
def create_feedback(
    caller: CallerDep,
    context: ContextDep,
    request: feedback.FeedbackRequest,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> dict[str, Any]:
    """Say how good an answer was; needs the scope of chat. A repetition with the same Idempotency-Key adds nothing."""
    with tenant_session(context.engine, caller.org_id) as session:
        piece = feedback.create(session, caller, request, idempotency_key=idempotency_key)
        return feedback_objects(session, [piece])[0]


@router.get("", dependencies=[needs("files:read")])
def list_feedback(
    caller: CallerDep,
    context: ContextDep,
    model: Annotated[str | None, Query(description="`<project>.<expert>`, or one version of it.")] = None,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "desc",
    min_score: Score = None,
    max_score: Score = None,
    since: Since = None,
    search: Search = None,
    completion: Annotated[str | None, Query(description="The id of a stored completion.")] = None,
) -> dict[str, Any]:
    """The project's feedback, newest first. ``search`` looks in prompt, completion, reference and comment."""
    completion_id = None if completion is None else parse_id(listing.KIND, completion)
    wanted = FeedbackFilter(model, min_score, max_score, moment(since), completion_id, search)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = feedback.list_feedback(session, caller, wanted, wanted_page("feedback", after, limit, order))
        return page(feedback_objects(session, listed), has_more=has_more)


@router.delete("/{feedback_id}", dependencies=[needs("files:write")])
def delete_feedback(caller: CallerDep, context: ContextDep, feedback_id: str) -> dict[str, Any]:
    """Delete a piece of feedback. Schedules that fire by feedback still count it."""
    with tenant_session(context.engine, caller.org_id) as session:
        feedback.delete_feedback(session, caller, parse_id("feedback", feedback_id))
        audit.record(session, caller, "feedback.deleted", feedback_id)
    return {"id": feedback_id, "object": "feedback", "deleted": True}


def feedback_objects(session: Session, pieces: Sequence[Feedback]) -> list[dict[str, Any]]:
    """``model`` is the version that answered; where none did alone, what the completion was asked of."""
    ids = {piece.version_id for piece in pieces if piece.version_id is not None}
    models: dict[uuid.UUID | None, str] = {
        version_id: record.name for version_id, record in versions.by_id(session, list(ids)).items()
    }
    models |= listing.models(session, [piece.completion_id for piece in pieces if piece.version_id is None])
    return [
        {
            "id": public_id("feedback", piece.id),
            "object": "feedback",
            "created_at": int(piece.created_at.timestamp()),
            "model": models.get(piece.version_id or piece.completion_id),
            "completion_id": None if piece.completion_id is None else public_id(listing.KIND, piece.completion_id),
            "choice": piece.choice,
            "messages": piece.messages,
            "completion": piece.completion,
            "score": piece.score,
            "reference": piece.reference,
            "comment": piece.comment,
        }
        for piece in pieces
    ]
