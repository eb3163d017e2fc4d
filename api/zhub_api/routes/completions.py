"""``/v1/completions``: text to go on from, without a chat template."""

import uuid
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field, model_validator

from zhub.errors import InvalidRequestError
from zhub.generation import Ended, GenerationRequest, Text
from zhub_api import answers
from zhub_api.answer_settings import MAX_LIKELIEST, AnswerSettings
from zhub_api.answers import Answer, Form
from zhub_api.chat_parameters import COMPLETIONS
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs
from zhub_api.serving_client import AnswerLine
from zhub_api.spent_budgets import WithinBudget
from zhub_api.streams import EVENTS, answering
from zhub_api.told_tokens import by_column

router = APIRouter(prefix="/v1")


class CompletionRequest(AnswerSettings):
    """The fields that zhub acts on; ``chat_parameters`` says what becomes of each other one."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LIKELIEST, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, body: Any) -> Any:
        return COMPLETIONS.refuse_unsupported(body)

    def for_serving(self) -> dict[str, Any]:
        return {**super().for_serving(), "prompt": self._text(), "logprobs": self.logprobs}

    def _text(self) -> str:
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(texts) != 1 or not isinstance(texts[0], str):
            raise InvalidRequestError(
                "'prompt' must be one text: token ids are not read, and each prompt is a request of its own.",
                param="prompt",
                code="unsupported_parameter",
            )
        return texts[0]


@router.post(
    "/completions", response_model=None, responses=answering(EVENTS), dependencies=[needs("chat"), WithinBudget]
)
async def complete(
    caller: CallerDep, context: ContextDep, http_request: Request, request: CompletionRequest
) -> Response | StreamingResponse:
    """Go on from a text, with an expert, a base model, a mixture (``experts``) or ``auto``; plain or streamed."""
    asked, shadow = await answers.asked_of_serving(context, caller, http_request, request)
    offset = len(asked.prompt or "")

    def choice(index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "text": answer.text,
            "finish_reason": answer.finish_reason(),
            "logprobs": None if asked.logprobs is None else by_column(answer.tokens, offset),
        }

    form = Form(f"cmpl-{uuid.uuid4().hex}", "text_completion", "text_completion", choice, _pieces(asked))
    tried = answers.shadowed(http_request, caller, request.model, shadow, form) if shadow else None
    return await answers.answer(http_request, caller, request, asked, form, [tried] if tried else ())


def _pieces(asked: GenerationRequest) -> Callable[[AnswerLine], list[dict[str, Any]]]:
    """What the chunks of a stream tell of each line."""
    offsets = [len(asked.prompt or "")] * asked.n

    def pieces(line: AnswerLine) -> list[dict[str, Any]]:
        match line:
            case Text():
                tokens = None if asked.logprobs is None else by_column(line.tokens, offsets[line.index])
                offsets[line.index] += len(line.text)
                return [{"index": line.index, "text": line.text, "finish_reason": None, "logprobs": tokens}]
            case Ended():
                return [{"index": line.index, "text": "", "finish_reason": line.finish_reason, "logprobs": None}]
        return []

    return pieces
