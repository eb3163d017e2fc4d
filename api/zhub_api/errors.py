"""One table from zhub's errors to HTTP statuses, and the error envelope of the OpenAI dialect."""

import json
import logging
import math
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel as Schema
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zhub import errors
from zhub.errors import RowProblem
from zhub.pydantic_errors import refusal

log = logging.getLogger("zhub.api")

# The most specific class of an error decides. None: never leaves the process that raised it, so it is a bug (500).
STATUSES: dict[type[errors.ZhubError], int | None] = {
    errors.ZhubError: 500,
    errors.InvalidRequestError: 400,
    errors.InvalidDatasetError: 400,
    errors.UnsupportedModelError: 400,
    errors.UnsupportedAdapterError: 400,
    errors.AddressRefusedError: 400,
    errors.SearchQueryError: 400,
    errors.AuthenticationError: 401,
    errors.PermissionDeniedError: 403,
    errors.RoleTooLowError: 403,
    errors.AccessNotGrantedError: 403,
    errors.GrantEndedError: 403,
    errors.AccessEndedError: 403,
    errors.NotFoundError: 404,
    errors.SlowReaderError: 408,
    errors.ConflictError: 409,
    errors.NotReadyError: 409,
    errors.IdempotencyMismatchError: 422,
    errors.QuotaExceededError: 429,
    errors.BudgetSpentError: 429,
    errors.TooManyAtOnceError: 429,
    errors.RateLimitedError: 429,
    errors.UnavailableError: 503,
    errors.DiskError: 503,
    errors.SandboxUnavailableError: 503,
    errors.StoreError: 503,
    errors.StoreAwayError: 503,
    errors.ObjectMissingError: 500,
    errors.DigestMismatchError: 500,
    errors.SchemaVersionError: 503,
    errors.ApiError: None,
    errors.EmbeddedError: None,
    errors.LeaseLostError: None,
    errors.DeposedError: None,
    errors.TrainingError: 400,
    errors.NonFiniteLossError: 400,
    errors.NonFiniteLogitsError: 400,
    errors.RewardError: 400,
    errors.RewardTimeoutError: 400,
    errors.RewardNotANumberError: 400,
    errors.ConstantRewardError: 400,
    errors.OutOfMemoryError: 400,
    errors.PromptTooLongError: 400,
    errors.BasisMismatchError: 409,
    errors.ArtifactError: 500,
}
INTERNAL_ERROR = "zhub failed to answer; the error is in the API's log."
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ErrorBody(Schema):
    """Why a request was refused: ``code`` for programs, ``message`` for people, ``param`` the field at fault."""

    message: str
    type: str
    param: str | None
    code: str
    errors: list[RowProblem] = []
    """What is wrong with the rows of a dataset."""


class ErrorAnswer(Schema):
    """What every request that fails is answered with."""

    error: ErrorBody


ANSWERS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request was refused."},
    "5XX": {"model": ErrorAnswer, "description": "The platform failed, or a part of it is away."},
}


class BodyTooLarge(HTTPException):
    """A request has a larger body than its route reads."""

    # Of Starlette's tree, because FastAPI takes any other exception in the middle of a body for a broken one.
    def __init__(self, limit: int) -> None:
        super().__init__(413, f"The body has more than {limit:,} bytes, which is as much as is read here.")


def status_of(error: errors.ZhubError) -> int:
    return STATUSES[type(error)] or 500


def envelope(status: int, message: str, /, *, code: str, param: str | None = None, **extra: Any) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": code, **extra}
    }


def install(app: FastAPI) -> None:
    """Answer every error in the dialect's envelope: FastAPI's own ``detail`` reaches its users as an empty message."""
    app.exception_handler(errors.ZhubError)(zhub_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(http_error)
    app.exception_handler(DataError)(_unstorable)
    app.exception_handler(Exception)(_unexpected)
    app.add_middleware(_Answered)


class _ErrorResponse(JSONResponse):
    """An error whose message may quote anything: what is not Unicode is escaped, as JSON does."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class _Answered:
    """Answers what no handler expects, within the application: the server closes the connection on what leaves it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception as exc:
            if started:
                raise  # only a closed connection tells that the answer is not whole
            await _unexpected(Request(scope), exc)(scope, receive, send)


def zhub_error(request: Request, exc: errors.ZhubError) -> _ErrorResponse:
    status = status_of(exc)
    if status >= 500:
        about = {"action": "request_failed", "code": exc.code}
        log.error("%s %s: %s", request.method, request.url.path, exc, exc_info=exc, extra=about)
    extra = {}
    if isinstance(exc, errors.InvalidDatasetError):
        extra["errors"] = [asdict(problem) for problem in exc.problems]
    body = envelope(status, str(exc), code=exc.code, param=getattr(exc, "param", None), **extra)
    return _ErrorResponse(body, status, headers=_retry_headers(exc, status))


def _validation_error(_request: Request, exc: RequestValidationError) -> _ErrorResponse:
    # The location begins with the part of the request: body, query, path or header.
    refused = refusal(exc.errors(), path=lambda location: location[1:])
    return _ErrorResponse(envelope(400, str(refused), code=refused.code, param=refused.param), 400)


def http_error(request: Request, exc: HTTPException) -> _ErrorResponse:
    message = f"{request.method} {request.url.path}: {exc.detail}"
    if exc.status_code == 404:
        message = f"No such route: {request.method} {request.url.path}."
    is_too_large = isinstance(exc, BodyTooLarge)
    code = "request_too_large" if is_too_large else str(exc.detail).lower().replace(" ", "_")
    return _ErrorResponse(envelope(exc.status_code, message, code=code), exc.status_code, headers=exc.headers)


def _unstorable(_request: Request, _exc: DataError) -> _ErrorResponse:
    message = "The request holds a value that cannot be stored: the character NUL, or a number out of range."
    return _ErrorResponse(envelope(400, message, code="invalid_request"), 400)


def _unexpected(request: Request, exc: Exception) -> _ErrorResponse:
    # Answered outside of every middleware, so the request's id has to be put on here.
    request_id = request.state.request_id
    log.error(
        "%s %s failed (request %s)",
        request.method,
        request.url.path,
        request_id,
        exc_info=exc,
        extra={"action": "request_failed", "code": "internal_error", "request_id": request_id},
    )
    return _ErrorResponse(
        envelope(500, INTERNAL_ERROR, code="internal_error"), 500, headers={"x-request-id": request_id}
    )


def _retry_headers(exc: errors.ZhubError, status: int) -> dict[str, str]:
    """The client retries 409, 429 and 5xx by itself: headers say when that can help."""
    if isinstance(exc, errors.TooManyAtOnceError):
        return {"retry-after": "1"}
    if isinstance(exc, errors.RateLimitedError):
        return {"retry-after": str(math.ceil(exc.retry_after_s))}
    if status == 503 or isinstance(exc, errors.NotReadyError):
        return {"retry-after-ms": "1000"}
    return {"x-should-retry": "false"} if status in (409, 429) else {}
