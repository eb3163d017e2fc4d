"""Fields of a row that change its meaning: each is acted on or refused by its name, never dropped without a word.

Only the assistant's last message is trained on, and templates get roles and texts. So a weight that says the same is
accepted, and one that says otherwise is refused; tools, images and names are refused. A field that means nothing to a
model (an id, a time) stays accepted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

REFUSED_IN_MESSAGES = {
    "tool_calls": "calls of tools are not rendered",
    "function_call": "calls of functions are not rendered",
    "tool_call_id": "answers of tools are not rendered",
    "name": "names of speakers are not rendered; write the name into the content",
    "refusal": "a refusal is not rendered; write it into the content",
    "audio": "base models read text only",
    "images": "base models read text only",
    "image": "base models read text only",
    "reasoning_content": "reasoning beside the content is not rendered; write it into the content",
    "reasoning": "reasoning beside the content is not rendered; write it into the content",
    "thinking": "reasoning beside the content is not rendered; write it into the content",
}
REFUSED_IN_ROWS = {
    "tools": "definitions of tools are not rendered",
    "functions": "definitions of functions are not rendered",
}


def ignored_in_row(row: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields beside the messages; ``row`` is the row, or ``input`` of one of preferences."""
    return _first_refused(row, REFUSED_IN_ROWS, "")


def ignored_in_messages(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with the fields of a row's messages beside role and content."""
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        if (problem := ignored_in_message(message, f"messages[{index}]", is_last=is_last)) is not None:
            return problem
    return None


def ignored_in_message(message: Mapping[str, Any], where: str, *, is_last: bool = True) -> str | None:
    """What is wrong with the fields of one message; ``where`` names it."""
    refused = _first_refused(message, REFUSED_IN_MESSAGES, f"{where}.")
    return refused or _wrong_weight(message, f"{where}.weight", is_last=is_last)


def unreadable_content(content: object) -> str | None:
    """Why a content that is a list is refused: the kind of its first part that is no text."""
    if not isinstance(content, list):
        return None
    kinds = [part.get("type") for part in content if isinstance(part, dict)]
    other = next((kind for kind in kinds if isinstance(kind, str) and kind != "text"), None)
    return None if other is None else f"must be a string, found a list with a part of type {other[:40]!r}; text only"


def _first_refused(fields: Mapping[str, Any], refused: Mapping[str, str], prefix: str) -> str | None:
    for name, why in refused.items():
        if fields.get(name) not in (None, "", [], {}):
            return f"'{prefix}{name}': {why}; leave it out"
    return None


def _wrong_weight(message: Mapping[str, Any], place: str, *, is_last: bool) -> str | None:
    weight = message.get("weight")
    if weight is None:
        return None
    trained = is_last and message.get("role") == "assistant"
    if isinstance(weight, bool) or weight not in (0, 1):
        return f"'{place}' must be 0 or 1"
    if trained and weight == 0:
        return f"'{place}' is 0, and only the assistant's last message is trained on: drop the row, or end it earlier"
    if not trained and weight == 1:
        return (
            f"'{place}' is 1, and only the assistant's last message is trained on: make a row of its own for this one"
        )
    return None
