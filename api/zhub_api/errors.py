"""One table from zhub's errors to HTTP statuses, and the error envelope of the OpenAI dialect."""

import logging
import math
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from zhub import errors
from zhub.pydantic_errors import refusal

log = logging.getLogger("zhub.api")

# The most specific class of an error decides. None: never leaves the process that raised it, so it is a bug (500).
STATUSES: dict[type[errors.ZhubError], int | None] = {
    errors.ZhubError: 500,
    errors.InvalidRequestError: 400,
    errors.InvalidDatasetError: 400,
    errors.UnsupportedModelError: 400,
    errors.AddressRefusedError: 400,
    errors.AuthenticationError: 401,
    errors.PermissionDeniedError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.NotReadyError: 409,
    errors.IdempotencyMismatchError: 422,
    errors.QuotaExceededError: 429,
    errors.RateLimitedError: 429,
    errors.UnavailableError: 503,
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
    errors.RewardError: 400,
    errors.RewardTimeoutError: 400,
    errors.RewardNotANumberError: 400,
    errors.ConstantRewardError: 400,
    errors.OutOfMemoryError: 400,
    errors.PromptTooLongError: 400,
    errors.BasisMismatchError: 409,
    errors.ArtifactError: 500,
}
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def status_of(error: errors.ZhubError) -> int:
    return STATUSES[type(error)] or 500


def envelope(status: int, message: str, *, code: str, param: str | None = None, **extra: Any) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": code, **extra}
    }


def install(app: FastAPI) -> None:
    """Answer every error in the dialect's envelope: FastAPI's own ``detail`` reaches its users as an empty message."""
    app.exception_handler(errors.ZhubError)(_zhub_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(DataError)(_unstorable)
    app.exception_handler(Exception)(_unexpected)


def _zhub_error(request: Request, exc: errors.ZhubError) -> JSONResponse:
    status = status_of(exc)
    if status >= 500:
        about = {"action": "request_failed", "code": exc.code}
        log.error("%s %s: %s", request.method, request.url.path, exc, exc_info=exc, extra=about)
    extra = {}
    if isinstance(exc, errors.InvalidDatasetError):
        extra["errors"] = [asdict(problem) for problem in exc.problems]
    body = envelope(status, str(exc), code=exc.code, param=getattr(exc, "param", None), **extra)
    return JSONResponse(body, status, headers=_retry_headers(exc, status))


def _validation_error(_request: Request, exc: RequestValidationError) -> JSONResponse:
    # The location begins with the part of the request: body, query, path or header.
    refused = refusal(exc.errors(), path=lambda location: location[1:])
    return JSONResponse(envelope(400, str(refused), code=refused.code, param=refused.param), 400)


def _http_error(request: Request, exc: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path}: {exc.detail}"
    if exc.status_code == 404:
        message = f"No such route: {request.method} {request.url.path}."
    code = str(exc.detail).lower().replace(" ", "_")
    return JSONResponse(envelope(exc.status_code, message, code=code), exc.status_code, headers=exc.headers)


def _unstorable(_request: Request, _exc: DataError) -> JSONResponse:
    message = "The request holds a value that cannot be stored: the character NUL, or a number out of range."
    return JSONResponse(envelope(400, message, code="invalid_request"), 400)


def _unexpected(request: Request, exc: Exception) -> JSONResponse:
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
    message = "zhub failed to answer; the error is in the API's log."
    return JSONResponse(envelope(500, message, code="internal_error"), 500, headers={"x-request-id": request_id})


def _retry_headers(exc: errors.ZhubError, status: int) -> dict[str, str]:
    """The client retries 409, 429 and 5xx by itself: headers say when that can help."""
    if isinstance(exc, errors.RateLimitedError):
        return {"retry-after": str(math.ceil(exc.retry_after_s))}
    if status == 503 or isinstance(exc, errors.NotReadyError):
        return {"retry-after-ms": "1000"}
    return {"x-should-retry": "false"} if status in (409, 429) else {}
