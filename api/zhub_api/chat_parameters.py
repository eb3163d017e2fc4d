"""Every parameter of the dialect's ``chat.completions.create``: acted on, harmless to ignore, or refused by its name.

A parameter is refused where the answer would mean something else than was asked for. Values that ask for what is done
anyway are accepted. Fields that the dialect does not have are ignored: clients send many for other servers, and those
that are known to change an answer there are refused as well.
"""

from collections.abc import Mapping
from typing import Any

from zhub.datasets.row_fields import REFUSED_IN_MESSAGES
from zhub.errors import InvalidRequestError

DONE = (
    "messages", "model", "max_completion_tokens", "max_tokens", "n", "seed", "stop", "stream", "stream_options",
    "temperature", "top_p", "user",
)  # fmt: skip

HARMLESS = {
    "metadata": "labels a stored answer, and none is stored",
    "parallel_tool_calls": "is about tools, which are refused",
    "prediction": "makes an answer faster, not another one",
    "prompt_cache_key": "steers a cache",
    "prompt_cache_options": "steers a cache",
    "prompt_cache_retention": "steers a cache",
    "reasoning_effort": "is a hint, and the model has no reasoning to lengthen",
    "safety_identifier": "names the end user",
    "service_tier": "steers a queue",
    "verbosity": "is a hint",
}

# Per parameter, the values beside null that ask for what is done anyway.
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}

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
    "structured_outputs": (),
    "top_k": (-1, 0),
}


def refuse_unsupported(body: Any) -> Any:
    """Return the body of a request as it came, unless it asks for what is not done.

    Raises:
        InvalidRequestError: with the path of the parameter as ``param``.
    """
    if not isinstance(body, Mapping):
        return body
    for name, neutral in (REFUSED | REFUSED_OF_OTHER_SERVERS).items():
        _refuse(name, body.get(name), neutral)
    messages = body.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        for name in REFUSED_IN_MESSAGES if isinstance(message, Mapping) else ():
            _refuse(f"messages.{index}.{name}", message.get(name), ("", [], {}), REFUSED_IN_MESSAGES[name])
    return body


def _refuse(param: str, value: Any, neutral: tuple[Any, ...], why: str = "this model does not do it") -> None:
    # By type too: false is no penalty of 0, and 0 no switch that is off.
    if value is None or any(value == same and isinstance(value, bool) is isinstance(same, bool) for same in neutral):
        return
    raise InvalidRequestError(
        f"'{param}' is not supported: {why}. Leave it out.", param=param, code="unsupported_parameter"
    )
