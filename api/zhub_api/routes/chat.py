"""``/v1/chat/completions``: rights are checked here, and the Ray Serve app computes the answer."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from zhub.errors import InvalidRequestError, UnavailableError
from zhub.generation import Ended, Started, Strategy, Text
from zhub_api import serving_client
from zhub_api.chat_parameters import refuse_unsupported
from zhub_api.context import CallerDep, ContextDep
from zhub_api.steering import MixturePart
from zhub_api.streams import EVENTS, answering, ending_with_errors

router = APIRouter(prefix="/v1/chat")

MAX_MIXTURE = 16


class ContentPart(Schema):
    """A text part of a message; zhub's base models read text only."""

    model_config = ConfigDict(extra="ignore")
    type: str
    text: str = ""


class Message(Schema):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None


class StreamOptions(Schema):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(Schema):
    """The fields that zhub acts on; ``chat_parameters`` says what becomes of each other one."""

    model_config = ConfigDict(extra="ignore")
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    experts: Annotated[list[MixturePart], Field(max_length=MAX_MIXTURE)] = []
    strategy: Strategy | None = None
    """How ``auto`` or a release chooses or mixes its experts, in place of its own way."""
    user: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None

    _supported = model_validator(mode="before")(refuse_unsupported)


@router.post("/completions", response_model=None, responses=answering(EVENTS))
async def create_completion(
    caller: CallerDep, context: ContextDep, http_request: Request, request: ChatRequest
) -> JSONResponse | StreamingResponse:
    """Answer with an expert, a base model, a mixture (``experts``), a release or ``auto``; plain or streamed.

    ``strategy`` is for a release or ``auto``: ``base``, ``mixture``, ``centroid`` or ``prompt`` in place of its own way
    to choose. Where an alias of a release has a canary, ``user`` decides who gets it, or else the request's id.
    """
    caller.require("chat")
    if request.n not in (None, 1):
        raise InvalidRequestError("n must be 1: one answer a request.", param="n")
    asked = await run_in_threadpool(
        serving_client.resolve,
        context,
        caller,
        request.model,
        [_plain(index, message) for index, message in enumerate(request.messages)],
        mixture=[part.named for part in request.experts],
        strategy=request.strategy,
        requester=request.user or http_request.state.request_id,
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=[request.stop] if isinstance(request.stop, str) else request.stop or [],
    )
    lines = serving_client.generate(http_request.app.state.serving, asked)
    # The first line decides the status: an error before it is a plain HTTP error, streamed or not.
    started = await anext(lines)
    if not isinstance(started, Started):
        raise UnavailableError("Serving answered without saying who answers; try again.")
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": f"fp_{asked.base.digest[:12]}",
        "experts": [chosen.model_dump() for chosen in started.experts],
        "routing": {
            "strategy": started.strategy,
            "reason": started.reason,
            "base_model": asked.base.name,
            "release": asked.release,
            "choice_s": started.choice_s,
        },
    }
    if request.stream:
        include_usage = request.stream_options is not None and request.stream_options.include_usage
        body = ending_with_errors(_chunks(head, started, lines, include_usage=include_usage))
        return StreamingResponse(body, media_type=EVENTS, headers={"cache-control": "no-cache"})
    pieces = [line async for line in lines]
    ended = pieces[-1]
    assert isinstance(ended, Ended)
    text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": ended.finish_reason, "logprobs": None}
    return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": _usage(started, ended)})


def _plain(index: int, message: Message) -> dict[str, str]:
    content = message.content
    if isinstance(content, list):
        if any(part.type != "text" for part in content):
            raise InvalidRequestError("Only text content is supported.", param=f"messages.{index}.content")
        content = "".join(part.text for part in content)
    return {"role": message.role, "content": content or ""}


async def _chunks(
    head: dict[str, Any], started: Started, lines: AsyncIterator[Started | Text | Ended], *, include_usage: bool
) -> AsyncGenerator[str]:
    """Server-sent events with ``data:`` lines only: ids and named events break the dialect's clients."""
    head = head | {"object": "chat.completion.chunk"}

    def event(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": ""})
    async for line in lines:
        if isinstance(line, Text):
            yield event({"content": line.text})
        elif isinstance(line, Ended):
            yield event({}, line.finish_reason)
            if include_usage:
                yield f"data: {json.dumps(head | {'choices': [], 'usage': _usage(started, line)})}\n\n"
            yield "data: [DONE]\n\n"


def _usage(started: Started, ended: Ended) -> dict[str, int]:
    return {
        "prompt_tokens": started.prompt_tokens,
        "completion_tokens": ended.completion_tokens,
        "total_tokens": started.prompt_tokens + ended.completion_tokens,
    }
