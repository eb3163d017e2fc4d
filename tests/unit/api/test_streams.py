"""Streams of server-sent events that break off."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from zhub.errors import NotFoundError, UnavailableError
from zhub_api.streams import ending_with_errors


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
