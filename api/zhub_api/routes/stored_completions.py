"""``/v1/chat/completions``, what is stored of them: listed, read, labelled and deleted, in the OpenAI dialect."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel as Schema
from pydantic import ConfigDict
from sqlalchemy.orm import Session

from zhub.completions import listing
from zhub.completions.listing import KIND, CompletionFilter
from zhub.database.sessions import tenant_session
from zhub.errors import NotFoundError
from zhub.evaluation.completion_feedback import RatingRequest, rate
from zhub.ids import parse_id, public_id
from zhub.models import StoredCompletion
from zhub.tenancy import audit
from zhub.tenancy.metadata import Metadata
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import Order, PageLimit, page, wanted_metadata, wanted_page
from zhub_api.rights import needs
from zhub_api.routes.feedback import feedback_objects

router = APIRouter(prefix="/v1/chat/completions")

TOLD_OF_REQUEST = (
    "frequency_penalty", "presence_penalty", "response_format", "seed", "temperature", "tool_choice", "tools", "top_p",
)  # fmt: skip


class MetadataChange(Schema):
    """``metadata`` replaces all pairs that there are."""

    model_config = ConfigDict(extra="forbid")
    metadata: Metadata | None


@router.get("", dependencies=[needs("files:read")])
def list_stored_completions(
    caller: CallerDep,
    context: ContextDep,
    http_request: Request,
    model: Annotated[str | None, Query(description="As it was asked for.")] = None,
    metadata: Annotated[
        Literal["null"] | None, Query(description="`metadata[key]=value`, which may be repeated.")
    ] = None,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    """The stored completions of the project, the oldest first, as the dialect has it."""
    wanted = CompletionFilter(model, wanted_metadata(http_request.query_params) or None)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = listing.list_completions(session, caller, wanted, wanted_page(KIND, after, limit, order))
        return page(completion_objects(session, listed), has_more=has_more)


@router.get("/{completion_id}", dependencies=[needs("files:read")])
def retrieve_stored_completion(caller: CallerDep, context: ContextDep, completion_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        completion = listing.get(session, caller.project_id, parse_id(KIND, completion_id))
        return completion_objects(session, [completion])[0]


@router.get("/{completion_id}/messages", dependencies=[needs("files:read")])
def list_stored_messages(
    caller: CallerDep,
    context: ContextDep,
    completion_id: str,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    """The messages of the request that was answered; those of the answer are its ``choices``."""
    with tenant_session(context.engine, caller.org_id) as session:
        completion = listing.get(session, caller.project_id, parse_id(KIND, completion_id))
    messages = [
        {"id": f"{completion_id}-{index}", "content": None, **message, **_parts(message)}
        for index, message in enumerate(completion.request["messages"])
    ]
    if order == "desc":
        messages.reverse()
    if after is not None:
        ids = [message["id"] for message in messages]
        if after not in ids:
            raise NotFoundError("message", after)
        messages = messages[ids.index(after) + 1 :]
    return page(messages[:limit], has_more=len(messages) > limit)


@router.post("/{completion_id}", dependencies=[needs("files:write")])
def update_stored_completion(
    caller: CallerDep, context: ContextDep, completion_id: str, request: MetadataChange
) -> dict[str, Any]:
    """Replace the metadata of a stored completion."""
    with tenant_session(context.engine, caller.org_id) as session:
        completion = listing.get(session, caller.project_id, parse_id(KIND, completion_id))
        listing.label(session, completion, request.metadata or {})
        return completion_objects(session, [completion])[0]


@router.post("/{completion_id}/feedback", dependencies=[needs("chat")])
def rate_stored_completion(
    caller: CallerDep,
    context: ContextDep,
    completion_id: str,
    request: RatingRequest,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> dict[str, Any]:
    """Say how good a stored answer was; needs the scope of chat, and is not in the dialect.

    It is feedback as any other. A repetition with the same Idempotency-Key adds nothing.
    """
    rated = parse_id(KIND, completion_id)
    with tenant_session(context.engine, caller.org_id) as session:
        piece = rate(session, caller, rated, request, idempotency_key=idempotency_key)
        return feedback_objects(session, [piece])[0]


@router.delete("/{completion_id}", dependencies=[needs("files:write")])
def delete_stored_completion(caller: CallerDep, context: ContextDep, completion_id: str) -> dict[str, Any]:
    """Delete a stored completion with the feedback on it. A dataset that was made of it stays as it is."""
    with tenant_session(context.engine, caller.org_id) as session:
        completion = listing.get(session, caller.project_id, parse_id(KIND, completion_id))
        listing.delete_completion(session, completion)
        audit.record(session, caller, "completion.deleted", completion_id)
    return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}


def completion_objects(session: Session, completions: Sequence[StoredCompletion]) -> list[dict[str, Any]]:
    """As the answers were told, with what is known of them since. ``rating`` is not in the dialect."""
    counts = listing.feedback_counts(session, completions)
    return [
        {
            "id": public_id(KIND, completion.id),
            **completion.answer,
            **{name: completion.request.get(name) for name in TOLD_OF_REQUEST},
            "metadata": completion.labels,
            "rating": None
            if completion.rating is None
            else {"mean": completion.rating, "choice": completion.rated_choice, "count": counts.get(completion.id, 0)},
        }
        for completion in completions
    ]


def _parts(message: dict[str, Any]) -> dict[str, Any]:
    """Content that came in parts is told as the dialect does: the parts beside the content."""
    content = message.get("content")
    return {"content_parts": content, "content": None} if isinstance(content, list) else {"content_parts": None}
