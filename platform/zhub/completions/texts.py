"""The messages of a stored completion as plain texts, as rows of a dataset have them."""

import json
from collections.abc import Mapping
from typing import Any

from zhub.models import StoredCompletion


def prompt(completion: StoredCompletion) -> list[dict[str, str]]:
    """The messages that were answered: roles and texts."""
    return [{"role": message["role"], "content": plain(message)} for message in completion.request["messages"]]


def plain(message: Mapping[str, Any]) -> str:
    """The text of a message; of one that only calls tools, the calls as JSON."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    if not content and message.get("tool_calls"):
        return json.dumps(message["tool_calls"], ensure_ascii=False)
    return content or ""
