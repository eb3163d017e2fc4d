"""Cells of foreign records as texts and messages."""

import json
from collections.abc import Mapping
from typing import Any

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
}

Message = dict[str, Any]


class CellError(ValueError):
    """A record cannot become a row; the message names the column."""


class EmptyCellError(CellError):
    """There is nothing in the column of the prompt or of the answer."""


def text_of(values: Mapping[str, Any], column: str) -> str:
    """The text of a cell that must have one. Raises CellError."""
    text = text_or_nothing(values, column)
    if not text.strip():
        raise EmptyCellError(f"nothing is in '{column}'")
    return text


def text_or_nothing(values: Mapping[str, Any], column: str) -> str:
    """The text of a cell; numbers and truth values as JSON writes them, ``""`` where there is none."""
    value = values.get(column)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        raise CellError(f"'{column}' is {kind}, and text was expected")
    return json.dumps(value)


def is_dialogue(value: object) -> bool:
    """Whether a cell holds messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def messages_of(values: Mapping[str, Any], column: str) -> list[Message]:
    """The messages of a cell, in either dialect: role and content, or from and value; also where they are JSON text.

    Other fields of a message stay, so that those which zhub does not train on are refused by name.
    """
    value = values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise CellError(f"'{column}' is not JSON: {exc}") from exc
    if value is None or value in ("", []):
        raise EmptyCellError(f"nothing is in '{column}'")
    if not is_dialogue(value):
        raise CellError(f"'{column}' must be a list of messages, each with role and content, or from and value")
    return [_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def answer_of(values: Mapping[str, Any], column: str) -> str:
    """The text of an answer: a text, or the last message of a dialogue, which must be the assistant's."""
    if not is_dialogue(values.get(column)):
        return text_of(values, column)
    last = messages_of(values, column)[-1]
    if last["role"] != "assistant" or not isinstance(last["content"], str) or not last["content"].strip():
        raise CellError(f"'{column}' must end with a message of the assistant's")
    return last["content"]


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that hold something: an empty cell of CSV and a null say the same."""
    return {column: value for column, value in values.items() if value is not None and value != ""}


def _message(message: Message, place: str) -> Message:
    foreign = "from" in message and "role" not in message
    speaker, content = ("from", "value") if foreign else ("role", "content")
    role = SPEAKERS.get(str(message.get(speaker)).lower())
    if role is None:
        known = ", ".join(sorted(SPEAKERS))
        raise CellError(f"the speaker of {place} is {message.get(speaker)!r}, and zhub knows {known}")
    others = {name: value for name, value in message.items() if name not in (speaker, content) and value is not None}
    return {"role": role, "content": message.get(content), **others}
