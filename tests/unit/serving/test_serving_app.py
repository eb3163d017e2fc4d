"""What a replica of the Serve app writes, as the API reads it."""

import asyncio

import httpx
import pytest

from zhub.generation import LINE, Ended, Line, Text
from zhub_workers.serving.app import json_lines


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\r\n"], ids=ascii)
def test_a_separator_of_lines_in_an_answer_stays_in_its_line(separator: str) -> None:
    answer: list[Line] = [Text(text=f"before{separator}after"), Ended(finish_reason="stop", completion_tokens=3)]

    async def written() -> str:
        lines: asyncio.Queue[Line] = asyncio.Queue()
        for line in answer:
            lines.put_nowait(line)
        return "".join([text async for text in json_lines(lines)])

    read = httpx.Response(200, content=asyncio.run(written())).iter_lines()
    assert [LINE.validate_json(text) for text in read] == answer
