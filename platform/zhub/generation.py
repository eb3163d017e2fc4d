"""What the API asks of the Ray Serve app, and what comes back: one JSON object a line, streamed."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from zhub.answering import Answering, ChosenExpert, SharedExpert
from zhub.specs import BaseModelSource, BasisReference

DEFAULT_MAX_NEW_TOKENS = 512
AFFINITY_HEADER = "x-session-id"
"""In which the API tells Ray Serve, whose name it is, the affinity of a request."""
MAX_BEGINNING = 1024  # characters of a prompt by which requests are taken to begin alike
MAX_UNANSWERED = 256
"""Requests of one organisation that a replica answers, or lets wait, at a time."""
FinishReason = Literal["stop", "length"]


class GenerationRequest(Answering):
    """One chat request, with the model's name already resolved.

    Without a ``basis``, which a base has only once it is decomposed, there are no experts.

    ``prompt`` is text to go on from, in place of ``messages``. ``org_id`` is whose request it is: a replica shares its
    time between organisations. ``logprobs`` is how many of the likeliest tokens are told beside each token's own
    log-probability, None for none at all. ``json_schema`` is what the answer must be, as text; ``{}`` is any object.

    Of the ``tools`` the answer calls one, several (unless not ``parallel_tool_calls``), or none (unless
    ``must_call_tool``).
    """

    model_config = ConfigDict(frozen=True)
    base: BaseModelSource
    basis: BasisReference | None
    org_id: str = ""
    shared: Annotated[list[SharedExpert], Field(exclude=True)] = []
    """Those of the experts that are another organisation's: for who asks, and never sent."""
    messages: list[dict[str, Any]] = []
    prompt: str | None = None
    tools: list[dict[str, Any]] = []
    must_call_tool: bool = False
    parallel_tool_calls: bool = True
    n: int = 1
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = []
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    json_schema: str | None = None

    @property
    def affinity(self) -> str:
        """What a replica answers it sooner with if it has it: its base / experts / the beginning of its prompt.

        The later turns of a conversation have the affinity of the first.
        """
        experts = [expert.z_sha256 for expert in [*self.experts, *(self.candidates or [])]]
        first = next((at for at, message in enumerate(self.messages) if message["role"] == "user"), 0)
        beginning = [self.org_id, self.tools, self.messages[: first + 1], (self.prompt or "")[:MAX_BEGINNING]]
        return f"{self.base.digest}/{_short_digest(experts)}/{_short_digest([experts, beginning])}"


class Started(BaseModel):
    """The first line: who answers, and why.

    ``strategy`` is ``auto`` where no release or request says how the experts are chosen. ``choice_s`` is how long it
    took to choose.
    """

    type: Literal["started"] = "started"
    strategy: Literal["base", "expert", "mixture", "auto", "centroid", "prompt", "classifier"]
    experts: list[ChosenExpert]
    reason: str
    prompt_tokens: int
    choice_s: float = 0.0


class LikelyToken(BaseModel):
    """A token of the vocabulary where it could have been chosen: its bytes, which may be part of a character."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    token: bytes
    logprob: float


class ChosenToken(LikelyToken):
    """The token that was chosen, and the likeliest ones in its place, the likeliest first."""

    likeliest: list[LikelyToken] = []


class Text(BaseModel):
    """The next piece of an answer; ``index`` says of which, where ``n`` are asked for.

    ``tokens`` are those that it is made of, where log-probabilities are asked for; ``count`` is how many there are at
    least.
    """

    type: Literal["text"] = "text"
    index: int = 0
    text: str
    tokens: list[ChosenToken] = []
    count: int = 1


class ToolCall(BaseModel):
    """A call of one of the tools; ``arguments`` is a JSON object, as text."""

    type: Literal["tool_call"] = "tool_call"
    index: int = 0
    name: str
    arguments: str


class Ended(BaseModel):
    """The last line of a whole answer; a stream without one for each of ``n`` broke off.

    ``cached_tokens`` is how much of the prompt had been read for an earlier request.
    """

    type: Literal["ended"] = "ended"
    index: int = 0
    finish_reason: FinishReason
    completion_tokens: int
    cached_tokens: int = 0


class Failed(BaseModel):
    """The last line of a request that failed, whatever its answers have come to; ``param`` is the field at fault."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    param: str | None = None


Line = Annotated[Started | Text | ToolCall | Ended | Failed, Field(discriminator="type")]
LINE: TypeAdapter[Line] = TypeAdapter(Line)


class EmbeddingRequest(BaseModel):
    """Texts whose embeddings are asked for, of one base: where each would lie as a prompt, by which routing chooses.

    A text is embedded as the one message of a user; token ids are as they are.
    """

    model_config = ConfigDict(frozen=True)
    base: BaseModelSource
    org_id: str = ""
    inputs: list[str | list[int]]

    @property
    def affinity(self) -> str:
        """As a GenerationRequest's: its base."""
        return self.base.digest


class Embeddings(BaseModel):
    """What an EmbeddingRequest is answered with, or Failed: a vector for each input, and the tokens of all."""

    type: Literal["embeddings"] = "embeddings"
    vectors: list[list[float]]
    prompt_tokens: int


EMBEDDED: TypeAdapter[Embeddings | Failed] = TypeAdapter(Annotated[Embeddings | Failed, Field(discriminator="type")])


def _short_digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
