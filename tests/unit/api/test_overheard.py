"""Answers that are stored: whole before their client has the last line of them, and never in part."""

import asyncio
from collections.abc import AsyncGenerator

from zhub.generation import Ended, Started, Text, ToolCall
from zhub_api.answers import Answer, overheard
from zhub_api.serving_client import AnswerLine

STARTED = Started(strategy="base", experts=[], reason="", prompt_tokens=1)
ENDED = Ended(finish_reason="stop", completion_tokens=1)
LINES: list[AnswerLine] = [
    STARTED, Text(text="2"), ENDED, Text(index=1, text="3"), ToolCall(index=1, name="f", arguments="{}"),
    Ended(index=1, finish_reason="length", completion_tokens=2),
]  # fmt: skip


async def said() -> AsyncGenerator[AnswerLine]:
    for line in LINES:
        yield line


def read(count: int) -> list[list[Answer]]:
    """Read so many lines, leave, and return what was told to be whole."""
    whole: list[list[Answer]] = []

    async def listen() -> None:
        lines = overheard(said(), 2, whole.append)
        for _ in range(count):
            await anext(lines)
        await lines.aclose()

    asyncio.run(listen())
    return whole


def test_all_answers_are_whole_when_the_last_line_of_them_comes() -> None:
    ((first, second),) = read(len(LINES))
    assert (first.text, first.ended.finish_reason, first.calls) == ("2", "stop", [])
    assert (second.text, second.ended.finish_reason, len(second.calls)) == ("3", "length", 1)


def test_answers_that_are_left_before_their_last_line_are_not() -> None:
    for count in range(len(LINES)):
        assert read(count) == []
