"""What chat and text completions have in common: how many answers, how long, and how their tokens are drawn."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field, model_validator

from zhub.answering import Strategy
from zhub.errors import InvalidRequestError
from zhub.generation import DEFAULT_MAX_NEW_TOKENS
from zhub.registry import resolve
from zhub_api.steering import MixturePart

MAX_MIXTURE = 16
MAX_ANSWERS = 32
MAX_TOKENS_OF_ALL = 65_536  # of the n answers of one request
MAX_STOPS = 16  # the dialect allows 4
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1_024
MAX_LIKELIEST = 20

Penalty = Annotated[float, Field(ge=-2, le=2, strict=True)]


class StreamOptions(Schema):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class AnswerSettings(Schema):
    model_config = ConfigDict(extra="ignore")
    model: str
    experts: Annotated[list[MixturePart], Field(max_length=MAX_MIXTURE)] = []
    strategy: Strategy | None = None
    """How ``auto`` or a release chooses or mixes its experts, in place of its own way."""
    user: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _bounded(self) -> "AnswerSettings":
        stops = self.stops()
        if len(stops) > MAX_STOPS:
            raise _refused(f"'stop' has {len(stops):,} texts, and an answer ends at one of at most {MAX_STOPS}", "stop")
        if (longest := max(map(len, stops), default=0)) > MAX_STOP_CHARACTERS:
            raise _refused(
                f"'stop' has a text of {longest:,} characters, and at most {MAX_STOP_CHARACTERS} are looked for", "stop"
            )
        answers, tokens = self.n or 1, self.longest_answer() or DEFAULT_MAX_NEW_TOKENS
        if answers > 1 and answers * tokens > MAX_TOKENS_OF_ALL:
            raise _refused(
                f"'n' answers of 'max_tokens' are {answers} × {tokens:,} = {answers * tokens:,} tokens, and one "
                f"request may ask for {MAX_TOKENS_OF_ALL:,}. Ask for fewer or shorter answers, or in several requests",
                "n",
            )
        return self

    def stops(self) -> list[str]:
        """The texts that end an answer; an empty one ends none."""
        stops: Sequence[str] = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    def longest_answer(self) -> int | None:
        """In tokens; None: as long as a replica answers by itself."""
        return self.max_tokens

    def mixture(self) -> list[resolve.MixturePart]:
        return [part.named for part in self.experts]

    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def for_serving(self) -> dict[str, Any]:
        """The fields of a GenerationRequest that these settings say."""
        return {
            "n": self.n or 1,
            "max_new_tokens": self.longest_answer(),
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed,
            "stop": self.stops(),
            "frequency_penalty": self.frequency_penalty or 0.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "logit_bias": self.logit_bias or {},
        }


def _refused(message: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message}.", param=param)
