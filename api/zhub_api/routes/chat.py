"""``/v1/chat/completions``: rights are checked here, and the Ray Serve app computes the answer."""

import json
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool

from zhub.completions.listing import KIND
from zhub.completions.settings import require_storing
from zhub.completions.storing import Completion
from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError
from zhub.generation import Ended, GenerationRequest, Started, Text, ToolCall
from zhub.ids import new_id, public_id
from zhub.tenancy.keys import Caller
from zhub.tenancy.metadata import Metadata
from zhub_api import answers, chat_tools
from zhub_api.answer_settings import MAX_LIKELIEST, AnswerSettings
from zhub_api.answers import Answer, Form, Keep
from zhub_api.chat_parameters import CHAT, refuse_in_messages
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.keeping import CompletionKeeper
from zhub_api.rights import needs
from zhub_api.serving_client import AnswerLine
from zhub_api.spent_budgets import WithinBudget
from zhub_api.streams import EVENTS, answering
from zhub_api.told_tokens import by_token

router = APIRouter(prefix="/v1/chat")

NOT_KEPT = {"model", "user", "store", "metadata", "stream", "stream_options"}
"""Of a request whose answer is stored: what is kept elsewhere, what names the end user, what is over by then."""


class ContentPart(Schema):
    """A text part of a message; zhub's base models read text only."""

    model_config = ConfigDict(extra="ignore")
    type: str
    text: str = ""


class CalledFunction(Schema):
    """``arguments`` is a JSON object, as text."""

    model_config = ConfigDict(extra="ignore")
    name: str
    arguments: str = ""


class CallOfTool(Schema):
    model_config = ConfigDict(extra="ignore")
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Schema):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[CallOfTool] | None = None
    tool_call_id: str | None = None


class JsonSchemaFormat(Schema):
    model_config = ConfigDict(extra="ignore")
    name: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(Schema):
    """Text, any JSON object, or JSON that fits a schema: ``strict`` or not, the answer is held to it."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def for_serving(self) -> str | None:
        """The schema as text; None for text."""
        if self.type != "json_schema":
            return None if self.type == "text" else "{}"
        if self.json_schema is None:
            raise InvalidRequestError(
                "'response_format' is of type json_schema, and has no 'json_schema' with a 'schema' in it.",
                param="response_format.json_schema",
            )
        return json.dumps(self.json_schema.json_schema)


class ChatRequest(AnswerSettings):
    """The fields that zhub acts on; ``chat_parameters`` says what becomes of each other one."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LIKELIEST)] | None = None
    response_format: ResponseFormat | None = None
    tools: chat_tools.Tools | None = None
    tool_choice: chat_tools.ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    store: StrictBool | None = None
    """Keep the answer as a stored completion, where the project allows it."""
    metadata: Metadata | None = None
    """Pairs by which a stored completion is found again."""

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, body: Any) -> Any:
        return CHAT.refuse_unsupported(refuse_in_messages(body))

    def longest_answer(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def for_serving(self) -> dict[str, Any]:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
        tools = chat_tools.for_serving(self.tools or [], self.tool_choice, self.parallel_tool_calls)
        if tools and self.logprobs:
            raise InvalidRequestError(
                "'logprobs' are not told of an answer that may call tools: leave out one of them.", param="logprobs"
            )
        return {
            **super().for_serving(),
            **tools,
            "messages": [_plain(index, message) for index, message in enumerate(self.messages)],
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "json_schema": None if self.response_format is None else self.response_format.for_serving(),
        }


@router.post(
    "/completions", response_model=None, responses=answering(EVENTS), dependencies=[needs("chat"), WithinBudget]
)
async def create_completion(
    caller: CallerDep, context: ContextDep, http_request: Request, request: ChatRequest
) -> Response | StreamingResponse:
    """Answer with an expert, a base model, a mixture (``experts``), a release or ``auto``; plain or streamed.

    ``strategy`` is for a release or ``auto``: ``base``, ``mixture``, ``centroid``, ``prompt``, or ``classifier`` where
    the release has one, in place of its own way to choose. Where an alias of a release has a canary, ``user`` decides
    who gets it, or else the request's id.
    """
    completion_id = new_id()
    keep = await keeping(context, caller, http_request, request, completion_id) if request.store else None
    asked, shadow = await answers.asked_of_serving(context, caller, http_request, request)
    form = Form(
        public_id(KIND, completion_id),
        "chat.completion",
        "chat.completion.chunk",
        lambda index, answer: _choice(index, answer, asked),
        _deltas(asked),
    )
    tried = answers.shadowed(http_request, caller, request.model, shadow, form) if shadow else None
    return await answers.answer(http_request, caller, request, asked, form, [k for k in (keep, tried) if k])


async def keeping(
    context: Context, caller: Caller, http_request: Request, request: ChatRequest, completion_id: uuid.UUID
) -> Keep:
    """What has an answer to this request stored.

    Raises:
        InvalidRequestError: the project stores none, or the request is too large.
        QuotaExceededError: the organisation stores as much as it may.
    """
    # Who the end user is is nobody's business once the request is answered.
    kept = request.model_dump(mode="json", exclude=NOT_KEPT, exclude_unset=True, exclude_none=True, by_alias=True)
    size_bytes = len(json.dumps(kept, ensure_ascii=False).encode())

    def check() -> None:
        with tenant_session(context.engine, caller.org_id) as session:
            require_storing(session, caller, size_bytes)

    await run_in_threadpool(check)
    keeper: CompletionKeeper = http_request.app.state.keeper

    def keep(told: dict[str, Any]) -> None:
        answer = {name: part for name, part in told.items() if name != "id"}
        answer["choices"] = [choice | {"logprobs": None} for choice in answer["choices"]]
        owner = (completion_id, caller.org_id, caller.project_id)
        completion = Completion(*owner, request.model, kept, answer, request.metadata or {})
        keeper.keep(completion, size_bytes + len(json.dumps(answer["choices"])))

    return keep


def _plain(index: int, message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        if any(part.type != "text" for part in content):
            raise InvalidRequestError("Only text content is supported.", param=f"messages.{index}.content")
        content = "".join(part.text for part in content)
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidRequestError(
            "A message of a tool says by 'tool_call_id' which call it answers.", param=f"messages.{index}.tool_call_id"
        )
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequestError("Only an assistant calls tools.", param=f"messages.{index}.tool_calls")
    plain: dict[str, Any] = {"role": message.role, "content": content or ""}
    if message.tool_calls:
        plain["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    return plain | ({"tool_call_id": message.tool_call_id} if message.role == "tool" else {})


def _choice(index: int, answer: Answer, asked: GenerationRequest) -> dict[str, Any]:
    # Between calls there is white space, which says nothing.
    content = None if answer.calls and not answer.text.strip() else answer.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [chat_tools.told_call(call) for call in answer.calls]
    return {
        "index": index,
        "message": message,
        "finish_reason": answer.finish_reason(),
        "logprobs": None if asked.logprobs is None else by_token(answer.tokens),
    }


def _deltas(asked: GenerationRequest) -> Callable[[AnswerLine], list[dict[str, Any]]]:
    """What the chunks of a stream tell of each line."""
    calls: Counter[int] = Counter()

    def choice(index: int, delta: dict[str, Any], finish_reason: str | None = None, tokens: Any = None) -> Any:
        return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": tokens}

    def deltas(line: AnswerLine) -> list[dict[str, Any]]:
        match line:
            case Started():
                return [choice(index, {"role": "assistant", "content": ""}) for index in range(asked.n)]
            case Text():
                tokens = None if asked.logprobs is None else by_token(line.tokens)
                return [choice(line.index, {"content": line.text}, None, tokens)]
            case ToolCall():
                call = {"index": calls[line.index]} | chat_tools.told_call(line)
                calls[line.index] += 1
                return [choice(line.index, {"tool_calls": [call]})]
            case Ended():
                return [choice(line.index, {}, "tool_calls" if calls[line.index] else line.finish_reason)]

    return deltas
