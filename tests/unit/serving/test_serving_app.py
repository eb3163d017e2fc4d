"""What a replica of the Serve app writes, as the API reads it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from zhub.generation import LINE, Ended, Line, Text
from zhub_workers.serving.app import Generation, json_lines, sha256_of

TOKEN = "0123456789abcdef" * 4


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


@pytest.fixture
def answer(tmp_path: Path) -> Callable[..., Response]:
    """Ask a replica whose token is ``TOKEN``, with a body that is no request of ours."""
    replica: Any = Generation.func_or_class(tmp_path.as_uri(), str(tmp_path), "cpu", "text", sha256_of(TOKEN))  # type: ignore[attr-defined]

    def ask(path: str, authorization: str | None) -> Response:
        headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        response: Response = asyncio.run(replica(Request(scope, receive)))
        return response

    return ask


@pytest.mark.parametrize(
    "authorization", [None, "", TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xff"]
)
def test_nobody_without_the_platforms_token_is_answered(
    answer: Callable[..., Response], authorization: str | None
) -> None:
    assert answer("/generate", authorization).status_code == 401


def test_the_platforms_token_lets_a_request_in(answer: Callable[..., Response]) -> None:
    assert answer("/generate", f"Bearer {TOKEN}").status_code == 400  # let in, and then found to be no request


def test_whether_a_replica_is_up_is_told_to_everybody(answer: Callable[..., Response]) -> None:
    assert answer("/", None).status_code == 200
