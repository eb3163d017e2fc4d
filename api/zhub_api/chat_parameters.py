"""Every parameter of the dialect's requests to models: acted on, harmless to ignore, or refused by its name.

A parameter is refused where the answer would mean something else than was asked for. Values that ask for what is done
anyway are accepted. Fields that the dialect does not have are ignored: clients send many for other servers, and those
that are known to change an answer there are refused as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zhub.datasets.row_fields import REFUSED_IN_MESSAGES
from zhub.errors import InvalidRequestError


@dataclass(frozen=True)
class Parameters:
    """The parameters of one of the dialect's calls.

    ``harmless`` says why each may be ignored. ``refused`` has the values beside null that ask for what is done anyway.
    """

    done: tuple[str, ...]
    harmless: Mapping[str, str]
    refused: Mapping[str, tuple[Any, ...]]

    def refuse_unsupported(self, body: Any) -> Any:
        """Return the body of a request as it came, unless it asks for what is not done.

        Raises:
            InvalidRequestError: with the path of the parameter as ``param``.
        """
        if not isinstance(body, Mapping):
            return body
        for name, neutral in self.refused.items():
            _refuse(name, body.get(name), neutral)
        for name, neutral in REFUSED_OF_OTHER_SERVERS.items():
            if name not in self.done:
                _refuse(name, body.get(name), neutral)
        return body


SHARED = (
    "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model", "n", "presence_penalty", "seed", "stop",
    "stream", "stream_options", "temperature", "top_p",
)  # fmt: skip
USER = {"user": "names the end user"}

CHAT = Parameters(
    done=(
        *SHARED, "max_completion_tokens", "messages", "metadata", "parallel_tool_calls", "response_format", "store",
        "tool_choice", "tools", "top_logprobs", "user",
    ),
    harmless={
        "prediction": "makes an answer faster, not another one",
        "prompt_cache_key": "steers a cache",
        "prompt_cache_options": "steers a cache",
        "prompt_cache_retention": "steers a cache",
        "reasoning_effort": "is a hint, and the model has no reasoning to lengthen",
        "safety_identifier": "names the end user",
        "service_tier": "steers a queue",
        "verbosity": "is a hint",
    },
    refused={
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "web_search_options": (),
    },
)  # fmt: skip
COMPLETIONS = Parameters(
    done=(*SHARED, "prompt", "user"),
    harmless={},
    refused={"best_of": (1,), "echo": (False,), "suffix": ("",)},
)
EMBEDDINGS = Parameters(done=("encoding_format", "input", "model"), harmless=USER, refused={"dimensions": ()})

REFUSED_OF_OTHER_SERVERS: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "store": (False,),
    "structured_outputs": (),
    "top_k": (-1, 0),
}


def refuse_in_messages(body: Any) -> Any:
    """Refuse what a message says beside its content and calls of tools, as ``Parameters.refuse_unsupported`` does."""
    messages = body.get("messages") if isinstance(body, Mapping) else None
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        for name, why in REFUSED_IN_MESSAGES.items() if isinstance(message, Mapping) else ():
            if name not in ("tool_calls", "tool_call_id"):
                _refuse(f"messages.{index}.{name}", message.get(name), ("", [], {}), why)
    return body


def _refuse(param: str, value: Any, neutral: tuple[Any, ...], why: str = "this model does not do it") -> None:
    # By type too: false is no penalty of 0, and 0 no switch that is off.
    if value is None or any(value == same and isinstance(value, bool) is isinstance(same, bool) for same in neutral):
        return
    raise InvalidRequestError(
        f"'{param}' is not supported: {why}. Leave it out.", param=param, code="unsupported_parameter"
    )
