"""How bases call tools: chat templates render them in a few formats, and answers are written and read in the same.

A base whose template has none of these is told no tools: it would not know how to call them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zhub.errors import InvalidRequestError
from zhub.generation import GenerationRequest, ToolCall


@dataclass(frozen=True)
class ToolFormat:
    """How calls are written: ``begin``, an object with a ``name`` and ``arguments`` for each, ``end``.

    ``begin`` is empty where an answer that is an object is a call. ``is_list``: the objects of all calls are items of
    one list; otherwise each has a ``begin`` and an ``end`` of its own. ``several``: an answer can have several calls.
    """

    begin: str
    end: str
    arguments: str = "arguments"
    is_list: bool = False
    several: bool = True


HERMES = ToolFormat("<tool_call>", "</tool_call>")  # Hermes, Qwen 2.5 and 3
LLAMA = ToolFormat("", "", arguments="parameters", several=False)  # Llama 3.1 to 3.3
MISTRAL = ToolFormat("[TOOL_CALLS]", "", is_list=True)


def tool_format(tokenizer: Any) -> ToolFormat | None:
    """The format that the chat template writes calls of tools in, or None."""
    template = str(tokenizer.chat_template)
    if "tools" not in template or "tool_calls" not in template:
        return None
    # Qwen3-Coder writes XML within the same marks, and newer templates of Mistral's no list.
    if HERMES.begin in template and "arguments" in template and "<function=" not in template:
        return HERMES
    if MISTRAL.begin in template and "[ARGS]" not in template:
        return MISTRAL
    if re.search(r"\{\\?\"name\\?\": .{0,60}\\?\"parameters\\?\":", template, re.DOTALL):
        return LLAMA
    return None


def format_for(tokenizer: Any, request: GenerationRequest) -> ToolFormat | None:
    """The format of the base's tool calls if the request is about tools, else None.

    Raises:
        InvalidRequestError: it is, and the base has none.
    """
    about_messages = any(message.get("tool_calls") or message["role"] == "tool" for message in request.messages)
    if not request.tools and not about_messages:
        return None
    known = tool_format(tokenizer)
    if known is None:
        raise InvalidRequestError(
            f"'{'tools' if request.tools else 'messages'}' cannot be used with {request.base.name}: its chat template "
            "has no format for tools that is known here (Hermes and Qwen, Llama 3, Mistral). Describe the tools in the "
            "prompt and ask for JSON with 'response_format', or take another base model.",
            param="tools" if request.tools else "messages",
            code="unsupported_parameter",
        )
    return known


class ToolCallReader:
    """Divides an answer, piece by piece, into text and calls of tools.

    Give it the text with special tokens in it: some formats mark calls by one.
    """

    def __init__(self, how: ToolFormat, index: int = 0) -> None:
        self._how = how
        self._index = index
        self._held = ""
        self._calling = False
        self._has_text = False

    def feed(self, text: str) -> str:
        """Return what of the answer is certainly text, and keep the rest."""
        self._held += text
        if self._calling:
            return ""
        shown = self._certain()
        certain, self._held = self._held[:shown], self._held[shown:]
        self._has_text |= bool(certain)
        self._calling = bool(self._held.strip()) and self._held.lstrip().startswith(self._how.begin or "{")
        return certain

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return what is left as text, and the calls, after the last piece.

        A call that the answer's length cut off is text.
        """
        text, self._held = self._held, ""
        calls: list[ToolCall] = []
        at = 0
        while self._calling and at < len(text):
            read = self._read(text, at)
            if read is None:
                break
            found, at = read
            calls += found
        return text[at:], calls

    def _certain(self) -> int:
        """How many of the held characters can no longer belong to a call."""
        begin = self._how.begin
        if not begin:
            # An answer that is an object from its first character on is a call.
            is_open = not self._has_text and self._held.lstrip()[:1] in ("", "{")
            return 0 if is_open else len(self._held)
        if (position := self._held.find(begin)) >= 0:
            return position
        longest = min(len(begin) - 1, len(self._held))
        return len(self._held) - next((n for n in range(longest, 0, -1) if begin.startswith(self._held[-n:])), 0)

    def _read(self, text: str, at: int) -> tuple[list[ToolCall], int] | None:
        """The calls that begin at a place of the text, and where they end; None where they are not whole."""
        begin, end = self._how.begin, self._how.end
        if not text.startswith(begin, at):
            return None
        try:
            value, at = json.JSONDecoder().raw_decode(text, _past_space(text, at + len(begin)))
            items = value if self._how.is_list and isinstance(value, list) else [value]
            calls = [self._call(item) for item in items]
        except (ValueError, RecursionError, KeyError, TypeError):
            return None
        at = _past_space(text, at)
        return (calls, _past_space(text, at + len(end))) if text.startswith(end, at) else None

    def _call(self, value: Any) -> ToolCall:
        arguments = json.dumps(value[self._how.arguments], ensure_ascii=False, allow_nan=False)
        return ToolCall(index=self._index, name=value["name"], arguments=arguments)


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates want them: the arguments of calls are objects there, and text in the dialect.

    Raises:
        InvalidRequestError: the arguments of a call are not a JSON object.
    """
    return [
        {**message, "tool_calls": [_template_call(index, call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for index, message in enumerate(messages)
    ]


def _template_call(index: int, call: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            f"'messages.{index}.tool_calls': the arguments of {call['function']['name']} are not a JSON object.",
            param=f"messages.{index}.tool_calls",
        )
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": call["function"]["name"], "arguments": arguments},
    }
