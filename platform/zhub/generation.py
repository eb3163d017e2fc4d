"""What the API asks of the Ray Serve app, and what comes back: one JSON object a line, streamed."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from zhub.specs import BaseModelSource, BasisReference


class ExpertReference(BaseModel):
    """An expert version as serving needs it: by digest, so that it needs no database."""

    model_config = ConfigDict(frozen=True)
    name: str
    digest: str
    z_key: str
    z_sha256: str
    routing_key: str
    routing_sha256: str
    weight: float = 1.0


class GenerationRequest(BaseModel):
    """One chat request, with the model's name already resolved.

    ``candidates`` is None unless routing shall choose among them; ``experts`` then is empty. ``others`` are the
    project's experts that may not answer: a prompt that is theirs is not a candidate's. Without a ``basis``, which a
    base has only once it is decomposed, there is none of them.
    """

    model_config = ConfigDict(frozen=True)
    base: BaseModelSource
    basis: BasisReference | None
    messages: list[dict[str, str]]
    experts: list[ExpertReference] = []
    candidates: list[ExpertReference] | None = None
    others: list[ExpertReference] = []
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = []


class ChosenExpert(BaseModel):
    """One expert that answered, with the weight of its part."""

    name: str
    digest: str
    weight: float


class Started(BaseModel):
    """The first line: who answers, and why."""

    type: Literal["started"] = "started"
    strategy: Literal["base", "expert", "mixture", "auto"]
    experts: list[ChosenExpert]
    reason: str
    prompt_tokens: int


class Text(BaseModel):
    """The next piece of the answer."""

    type: Literal["text"] = "text"
    text: str


class Ended(BaseModel):
    """The last line of a whole answer; a stream without one broke off."""

    type: Literal["ended"] = "ended"
    finish_reason: Literal["stop", "length"]
    completion_tokens: int


class Failed(BaseModel):
    """The last line of an answer that failed."""

    type: Literal["failed"] = "failed"
    code: str
    message: str


Line = Annotated[Started | Text | Ended | Failed, Field(discriminator="type")]
LINE: TypeAdapter[Line] = TypeAdapter(Line)
