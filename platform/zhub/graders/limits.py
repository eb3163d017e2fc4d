"""How large the input of a grader may be. Every grader reads capped text, so that its cost has a bound."""

from collections.abc import Mapping
from typing import Any

ANSWER_CHARACTERS = 100_000
ITEM_CHARACTERS = 1_000_000
"""All texts and keys of a row's columns together; any other value counts as one character."""
FILLED_CHARACTERS = 200_000
"""What a template gives once its placeholders are replaced."""
SUBSEQUENCE_CHARACTERS = 20_000
"""Of either text, for ``fuzzy_match`` and ``rouge_l``: no algorithm finds the longest common subsequence in less than
about the product of the two lengths (arXiv:1502.01063), so twice the length takes four times as long."""
TEMPLATE_CHARACTERS = 100_000
SCHEMA_CHARACTERS = 64 << 10
GRADER_CHARACTERS = 2_000_000
JUDGE_MESSAGES = 20
TESTS = 2_000
"""Of one row of a ``code_tests`` grader."""
NESTING = 100
"""How deep JSON of a request may nest. Python's own readers and writers of JSON end near 1,000."""

ITEM_CPU_S = 2.0
"""Processor time for one answer, or for the check of one grader. It is counted by the kernel, so that a busy machine
does not turn right answers into wrong ones."""
ITEM_WALL_S = 20.0
PROCESS_MEMORY_BYTES = 2 << 30
MAX_LOST = 5
"""Of one batch of answers, so many may fail to be graded in time; with more the grader is at fault."""


class TooLargeError(Exception):
    """A value is larger than a grader reads. Control flow: each caller makes it an error of its own."""


def check_size(value: Any, *, most: int) -> None:
    """Raise TooLargeError where JSON has more than ``most`` characters, or nests deeper than ``NESTING``.

    It looks at ``most`` values at most, whatever it is given.
    """
    size = 0
    unread: list[tuple[Any, int]] = [(value, 0)]
    while unread:
        part, depth = unread.pop()
        if isinstance(part, str):
            size += len(part)
            continue
        size += 1
        if isinstance(part, Mapping | list | tuple):
            if depth == NESTING:
                raise TooLargeError(f"nests deeper than {NESTING} levels")
            size += len(part)
        if size > most:
            break
        if isinstance(part, Mapping):
            size += sum(len(key) for key in part if isinstance(key, str))
            unread += [(inner, depth + 1) for inner in part.values()]
        elif isinstance(part, list | tuple):
            unread += [(inner, depth + 1) for inner in part]
    if size > most:
        raise TooLargeError(f"has more than {most:,} characters")
