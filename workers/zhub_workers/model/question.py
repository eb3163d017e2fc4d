"""The question that a first pass asks of a prompt: which expert it is for. Without torch, for who only writes it down.

The user's text comes first, so that what the first pass has read is the beginning of what the second reads.
"""

import string
from collections.abc import Sequence
from typing import Any

CLASSIFIER_QUESTION = "\nTask?"
"""What a classifier expert is asked. It learns what the letters mean, so it is not told: the question is short, and as
short for sixteen experts as for two, and a renamed expert keeps its letter."""


def with_question(messages: Sequence[dict[str, Any]], question: str) -> list[dict[str, Any]]:
    """A conversation whose last message, where it is the user's, goes on with the question."""
    *before, last = messages
    if last["role"] != "user":
        return [*messages, {"role": "user", "content": question.lstrip()}]
    return [*before, last | {"content": str(last["content"] or "") + question}]


def answers_for(labels: int) -> list[str]:
    """What a classifier answers for each of so many labels, and at the end for the prompts of none of them."""
    return list(string.ascii_uppercase[: labels + 1])
