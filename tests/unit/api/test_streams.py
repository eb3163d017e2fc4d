"""Streams of server-sent events that break off."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from zhub.errors import NotFoundError, UnavailableError
from zhub_api.streams import ending_with_errors, read_ahead


async def breaking(error: BaseException | None) -> AsyncGenerator[str]:
    yield "data: 1\n\n"
    if error is not None:
        raise error
    yield "data: 2\n\n"


def messages(error: BaseException | None) -> list[str]:
    async def collect() -> list[str]:
        return [message async for message in ending_with_errors(breaking(error))]

    return asyncio.run(collect())


def test_a_stream_that_ends_well_is_as_it_is() -> None:
    assert messages(None) == ["data: 1\n\n", "data: 2\n\n"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UnavailableError("away"), "service_unavailable_error", "unavailable"),
        (NotFoundError("job", "x"), "invalid_request_error", "not_found"),
        (RuntimeError("secret"), "server_error", "internal_error"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate"), "server_error", "internal_error"),
    ],
)
def test_any_exception_in_the_middle_is_an_error_event(error: Exception, kind: str, code: str) -> None:
    first, last = messages(error)
    assert first == "data: 1\n\n"
    told: dict[str, Any] = json.loads(last.removeprefix("data: "))["error"]
    assert (told["type"], told["code"]) == (kind, code) and "secret" not in told["message"]


def test_a_client_that_leaves_gets_no_error() -> None:
    with pytest.raises(asyncio.CancelledError):
        messages(asyncio.CancelledError())


class Numbers:
    """A stream of ten numbers; ``read`` is how many were taken of it, ``closed`` whether it has ended."""

    def __init__(self) -> None:
        self.read, self.closed = 0, False

    async def stream(self) -> AsyncGenerator[str]:
        try:
            for self.read in range(1, 11):
                yield f"data: {self.read}\n\n"
                await asyncio.sleep(0)
        finally:
            self.closed = True


def test_a_stream_is_read_as_it_comes_before_its_client_takes_it() -> None:
    numbers = Numbers()

    async def read() -> list[str]:
        stream = ending_with_errors(read_ahead(numbers.stream()))
        first = await anext(stream)
        while not numbers.closed:
            await asyncio.sleep(0)
        return [first, *[message async for message in stream]]

    assert asyncio.run(read()) == [f"data: {number}\n\n" for number in range(1, 11)]


def test_a_client_too_far_behind_gets_what_was_kept_and_an_error_and_its_stream_ends() -> None:
    numbers = Numbers()

    async def read() -> list[str]:
        stream = ending_with_errors(read_ahead(numbers.stream(), most=3 * len("data: 1\n\n")))
        first = await anext(stream)
        while not numbers.closed:
            await asyncio.sleep(0)
        return [first, *[message async for message in stream]]

    *kept, error = asyncio.run(read())
    assert kept == [f"data: {number}\n\n" for number in range(1, len(kept) + 1)] and len(kept) < 10
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "slow_reader"
    assert numbers.read < 10, "nobody computes what nobody takes"


def test_a_client_that_leaves_ends_the_stream_that_was_read_ahead() -> None:
    numbers = Numbers()

    async def leave() -> None:
        stream = read_ahead(numbers.stream())
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert numbers.closed
