"""Answers in pieces: how the interface's document tells of them, and streams that end with what went wrong."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from zhub.errors import SlowReaderError, ZhubError
from zhub_api.errors import INTERNAL_ERROR, envelope, status_of

log = logging.getLogger("zhub.api")

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
JSON_LINES = "application/jsonl"
BYTES = "application/octet-stream"
MAX_AHEAD = 4 << 20  # characters of a stream that wait for its client
BINARY = {"type": "string", "format": "binary"}


def answering(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route that answers with one of these, beside what its ``response_class`` says."""
    # A schema beside an event stream would be that of each event: OpenAPI 3.1 has no word for the stream.
    text = {"schema": {"type": "string"}}
    content = {EVENTS: {}, LINES: text, JSON_LINES: text, BYTES: {"schema": BINARY}}
    return {200: {"content": {media_type: content[media_type] for media_type in media_types}}}


async def ending_with_errors(messages: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The messages of a stream, and an error event where it breaks off: its status was sent long ago.

    Without one, a client would take what came before for the whole. The event is ``data: {"error": …}``, by which the
    dialect's clients raise; its ``status`` is the one that the error would have had.
    """
    async with aclosing(messages):
        try:
            async for message in messages:
                yield message
        except ZhubError as exc:
            status = status_of(exc)
            log.warning("a stream broke off: %s", exc, extra={"action": "stream_failed", "code": exc.code})
            yield _event(status, str(exc), exc.code, getattr(exc, "param", None))
        except Exception as exc:
            log.error("a stream broke off", exc_info=exc, extra={"action": "stream_failed", "code": "internal_error"})
            yield _event(500, INTERNAL_ERROR, "internal_error", None)


async def read_ahead(messages: AsyncGenerator[str], most: int = MAX_AHEAD) -> AsyncGenerator[str]:
    """The messages of a stream, which is read as it comes, whatever its client has taken of it.

    So a slow client holds nothing up that others use.

    Raises:
        SlowReaderError: after ``most`` characters that the client has not taken.
    """
    ahead: asyncio.Queue[str | None] = asyncio.Queue()
    waiting = 0

    async def read() -> None:
        nonlocal waiting
        try:
            async with aclosing(messages):
                async for message in messages:
                    waiting += len(message)
                    if waiting > most:
                        raise SlowReaderError(most)
                    ahead.put_nowait(message)
        finally:
            ahead.put_nowait(None)

    reading = asyncio.create_task(read())
    try:
        while (message := await ahead.get()) is not None:
            waiting -= len(message)
            yield message
        await reading
    finally:
        reading.cancel()
        # Not ``gather``, which, being cancelled, would cancel it again, in the middle of closing its connection.
        await asyncio.wait({reading})


def _event(status: int, message: str, code: str, param: str | None) -> str:
    return f"data: {json.dumps(envelope(status, message, code=code, param=param, status=status))}\n\n"
