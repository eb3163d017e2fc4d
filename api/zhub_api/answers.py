"""A model's answers on their way from serving to a client: collected, counted, and given up when nobody listens."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from zhub.errors import UnavailableError
from zhub.generation import ChosenToken, Ended, GenerationRequest, Started, Text, ToolCall
from zhub.tenancy.keys import Caller
from zhub_api import serving_client
from zhub_api.answer_settings import AnswerSettings
from zhub_api.context import Context
from zhub_api.serving_client import AnswerLine
from zhub_api.shadowing import Shadow
from zhub_api.streams import EVENTS, ending_with_errors, read_ahead

T = TypeVar("T")

Keep = Callable[[dict[str, Any]], None]
"""Gets the body of a whole answer as a plain response has it, streamed or not, and returns at once."""

WARNING_HEADER = "x-zhub-warning"
CLIENT_CLOSED_REQUEST = 499  # nginx's: nobody reads it, and the metrics tell it from an answer


@dataclass
class Answer:
    """One of a request's answers."""

    text: str = ""
    tokens: list[ChosenToken] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    ended: Ended = field(default_factory=lambda: Ended(finish_reason="stop", completion_tokens=0))

    def finish_reason(self) -> str:
        return "tool_calls" if self.calls else self.ended.finish_reason


@dataclass(frozen=True)
class Form:
    """How one of the dialect's calls tells its answers.

    Attributes:
        id: of this one.
        whole, chunk: the ``object`` of a whole response, and of a piece of a stream.
        choice: of an answer, by its index.
        deltas: what the chunks of a stream tell of a line.
    """

    id: str
    whole: str
    chunk: str
    choice: Callable[[int, Answer], dict[str, Any]]
    deltas: Callable[[AnswerLine], list[dict[str, Any]]]


async def asked_of_serving(
    context: Context, caller: Caller, http_request: Request, settings: AnswerSettings
) -> tuple[GenerationRequest, Shadow | None]:
    """What serving is asked for, and a shadow, if one gets the request. Raises as ``serving_client.resolve``."""
    return await run_in_threadpool(
        serving_client.resolve,
        context,
        caller,
        settings.model,
        settings.mixture(),
        strategy=settings.strategy,
        requester=settings.user or http_request.state.request_id,
        request_id=http_request.state.request_id,
        **settings.for_serving(),
    )


async def answer(
    http_request: Request,
    caller: Caller,
    settings: AnswerSettings,
    asked: GenerationRequest,
    form: Form,
    keeps: Sequence[Keep] = (),
) -> Response | StreamingResponse:
    """Have serving answer, and tell it in a form: plain or streamed. Each of ``keeps`` gets the whole answer."""
    lines: AsyncIterator[AnswerLine] = serving_client.generate(http_request.app.state.serving, caller, asked)
    first = await while_listened_to(http_request, started(lines))
    if first is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    beginning = {"id": form.id, **head(settings.model, asked, first)}

    def heard(answers: Sequence[Answer]) -> None:
        told = body(beginning, form, first, answers)
        for keep in keeps:
            keep(told)

    if keeps:
        lines = overheard(lines, asked.n, heard)
    if settings.stream:
        of_chunks = beginning | {"object": form.chunk}
        chunks = events(of_chunks, first, lines, form.deltas, includes_usage=settings.includes_usage())
        pieces = ending_with_errors(read_ahead(chunks))
        headers = {"cache-control": "no-cache", **_headers(asked, first)}
        return StreamingResponse(pieces, media_type=EVENTS, headers=headers)
    whole = await while_listened_to(http_request, collected(lines, asked.n))
    if whole is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(body(beginning, form, first, whole), headers=_headers(asked, first))


def body(beginning: dict[str, Any], form: Form, first: Started, answers: Sequence[Answer]) -> dict[str, Any]:
    """A plain response with all answers."""
    choices = [form.choice(index, answer) for index, answer in enumerate(answers)]
    used = usage(first, [answer.ended for answer in answers])
    return beginning | {"object": form.whole, "choices": choices, "usage": used}


def shadowed(http_request: Request, caller: Caller, model: str, shadow: Shadow, form: Form) -> Keep:
    """What has a shadow answer once the live answer is whole, and the two compared."""
    state, began = http_request.app.state, time.monotonic()

    async def answered(asked: GenerationRequest) -> dict[str, Any]:
        lines = serving_client.generate(state.serving, caller, asked)
        first = await started(lines)
        return body(head(model, asked, first), form, first, await collected(lines, asked.n))

    def keep(live: dict[str, Any]) -> None:
        state.shadowing.ask(shadow, answered, live, time.monotonic() - began)

    return keep


async def started(lines: AsyncIterator[AnswerLine]) -> Started:
    """The first line, by which the status is decided: an error before it is a plain HTTP error, streamed or not."""
    first = await anext(lines)
    if not isinstance(first, Started):
        raise UnavailableError("Serving answered without saying who answers; try again.")
    return first


def head(model: str, asked: GenerationRequest, first: Started) -> dict[str, Any]:
    """What every answer and every chunk of it begins with, beside its id: who answers, and why."""
    return {
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"fp_{asked.base.digest[:12]}",
        "experts": [chosen.model_dump() for chosen in first.experts],
        "routing": {
            "strategy": first.strategy,
            "reason": first.reason,
            "base_model": asked.base.name,
            "release": asked.release,
            "choice_s": first.choice_s,
            "warnings": warnings(asked, first),
        },
    }


def warnings(asked: GenerationRequest, first: Started) -> list[str]:
    """What is told of the experts that answer: which of them are deprecated, and what to use."""
    names = {chosen.name for chosen in first.experts}
    references = (*asked.experts, *(asked.candidates or ()))
    return [known.warning for known in references if known.warning is not None and known.name in names]


def _headers(asked: GenerationRequest, first: Started) -> dict[str, str]:
    """Those that tell of the same, for clients that read no bodies."""
    told = warnings(asked, first)
    return {WARNING_HEADER: " ".join(told).encode("ascii", "replace").decode()} if told else {}


async def collected(lines: AsyncIterator[AnswerLine], count: int) -> list[Answer]:
    """All answers, whole."""
    answers = [Answer() for _ in range(count)]
    async for line in lines:
        _add(line, answers)
    return answers


async def overheard(
    lines: AsyncIterator[AnswerLine], count: int, whole: Callable[[list[Answer]], None]
) -> AsyncGenerator[AnswerLine]:
    """The lines as they come; ``whole`` gets all answers once serving has ended the last one.

    Before the client gets its line: by then it may have gone. One that goes earlier leaves no whole answers behind.
    """
    answers = [Answer() for _ in range(count)]
    unended = set(range(count))
    async for line in lines:
        _add(line, answers)
        if isinstance(line, Ended):
            unended.discard(line.index)
            if not unended:
                whole(answers)
        yield line


def _add(line: AnswerLine, answers: list[Answer]) -> None:
    if isinstance(line, Text):
        answers[line.index].text += line.text
        answers[line.index].tokens += line.tokens
    elif isinstance(line, ToolCall):
        answers[line.index].calls.append(line)
    elif isinstance(line, Ended):
        answers[line.index].ended = line


def usage(first: Started, ended: Iterable[Ended]) -> dict[str, Any]:
    """The tokens of a request and of all its answers; the prompt is counted once, as it is read once."""
    every = list(ended)
    completion = sum(line.completion_tokens for line in every)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": max((line.cached_tokens for line in every), default=0)},
    }


async def events(
    beginning: dict[str, Any],
    first: Started,
    lines: AsyncIterator[AnswerLine],
    choices: Callable[[AnswerLine], list[dict[str, Any]]],
    *,
    includes_usage: bool,
) -> AsyncGenerator[str]:
    """Server-sent events with ``data:`` lines only: ids and named events break the dialect's clients.

    ``choices`` makes of a line what its events tell. The last event is ``[DONE]``, after all answers have ended.
    """
    beginning = beginning | ({"usage": None} if includes_usage else {})
    ended = []

    def event(choice: dict[str, Any]) -> str:
        return f"data: {json.dumps(beginning | {'choices': [choice]})}\n\n"

    for choice in choices(first):
        yield event(choice)
    async for line in lines:
        for choice in choices(line):
            yield event(choice)
        if isinstance(line, Ended):
            ended.append(line)
    if includes_usage:
        yield f"data: {json.dumps(beginning | {'choices': [], 'usage': usage(first, ended)})}\n\n"
    yield "data: [DONE]\n\n"


async def while_listened_to(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` returns; None, and the work cancelled, where the client leaves before.

    So its row of serving's batch is free at once. Call it when the request's body has been read.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
