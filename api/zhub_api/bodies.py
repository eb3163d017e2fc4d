"""The bodies of requests: read once the key is known, and up to a limit."""

import re

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zhub.datasets.validation import MAX_FILE_BYTES
from zhub.errors import ZhubError
from zhub_api import errors
from zhub_api.context import authenticated, context_of

MAX_JSON_BYTES = 8 << 20
MULTIPART_BYTES = 1 << 20  # around a file, and for the form's other fields
# These are asked without a key, because they answer with one. What they read is small.
KEYLESS = ("/v1/invitations/accept", "/v1/login")
MAX_KEYLESS_BYTES = 64 << 10
# These go to disk as they come. The second counts by itself.
UPLOADS: tuple[tuple[str, re.Pattern[str], int | None], ...] = (
    ("POST", re.compile(r"/v1/files"), MAX_FILE_BYTES + MULTIPART_BYTES),
    ("PUT", re.compile(r"/v1/base_models/[^/]+/files/[^/]+"), None),
)


class GuardedBodies:
    """The innermost middleware: a request with a body needs a known key before a byte of it is asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/") or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            if scope["path"] not in KEYLESS:
                request.state.caller = await run_in_threadpool(
                    authenticated, await context_of(request), request.headers.get("authorization"), request
                )
        except ZhubError as exc:
            await errors.zhub_error(request, exc)(scope, receive, send)
            return
        limit = max_body_bytes(scope["method"], scope["path"])
        if limit is not None and int(request.headers.get("content-length") or 0) > limit:
            await errors.http_error(request, errors.BodyTooLarge(limit))(scope, receive, send)
            return
        await self._app(scope, receive if limit is None else _counted(receive, limit), send)


def max_body_bytes(method: str, path: str) -> int | None:
    """How much a request may send; None where its route counts."""
    if path in KEYLESS:
        return MAX_KEYLESS_BYTES
    for of_method, pattern, limit in UPLOADS:
        if method == of_method and pattern.fullmatch(path):
            return limit
    return MAX_JSON_BYTES


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _counted(receive: Receive, limit: int) -> Receive:
    received = 0

    async def receive_on() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise errors.BodyTooLarge(limit)
        return message

    return receive_on
