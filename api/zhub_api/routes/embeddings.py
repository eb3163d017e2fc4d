"""``/v1/embeddings``: where texts lie as prompts of a base model, which is what routing chooses experts by."""

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from zhub.errors import InvalidRequestError
from zhub.generation import EmbeddingRequest
from zhub_api import answers, serving_client
from zhub_api.chat_parameters import EMBEDDINGS
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs
from zhub_api.spent_budgets import WithinBudget

router = APIRouter(prefix="/v1")

MAX_INPUTS = 256  # the dialect allows 2048; a replica reads them between the tokens of other answers

Token = Annotated[int, Field(ge=0)]


class EmbeddingsRequest(Schema):
    """The fields that zhub acts on; ``chat_parameters`` says what becomes of each other one."""

    model_config = ConfigDict(extra="ignore")
    model: str
    input: str | list[str] | list[Token] | list[list[Token]]
    encoding_format: Literal["float", "base64"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, body: Any) -> Any:
        return EMBEDDINGS.refuse_unsupported(body)

    def inputs(self) -> list[str | list[int]]:
        given: Any = self.input
        inputs = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        if not 1 <= len(inputs) <= MAX_INPUTS or not all(inputs):
            raise InvalidRequestError(
                f"'input' must be 1 to {MAX_INPUTS} texts, none of them empty; found {len(inputs)}.", param="input"
            )
        return list(inputs)


@router.post("/embeddings", response_model=None, dependencies=[needs("chat"), WithinBudget])
async def create_embeddings(
    caller: CallerDep, context: ContextDep, http_request: Request, request: EmbeddingsRequest
) -> Response:
    """Embed texts, each as the one message of a user, or token ids as they are."""
    inputs = request.inputs()
    base = await run_in_threadpool(serving_client.resolve_base, context, caller, request.model)
    asked = EmbeddingRequest(base=base, org_id=str(caller.org_id), inputs=inputs)
    embedding = serving_client.embed(http_request.app.state.serving, caller, asked)
    embedded = await answers.while_listened_to(http_request, embedding)
    if embedded is None:
        return Response(status_code=answers.CLIENT_CLOSED_REQUEST)
    return JSONResponse(
        {
            "object": "list",
            "model": request.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": _encoded(vector, request.encoding_format)}
                for index, vector in enumerate(embedded.vectors)
            ],
            "usage": {"prompt_tokens": embedded.prompt_tokens, "total_tokens": embedded.prompt_tokens},
        }
    )


def _encoded(vector: Sequence[float], how: str | None) -> list[float] | str:
    if how != "base64":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
