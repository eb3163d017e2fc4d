"""Exit codes: 2 is usage (typer), 130 an interrupt (typer); the rest is decided here."""

from typing import Final

from zhub.errors import (
    AccessEndedError,
    ApiError,
    AuthenticationError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    ZhubError,
)

ERROR: Final = 1
AUTHENTICATION: Final = 3
NOT_FOUND: Final = 4
CONFLICT: Final = 5
JOB_FAILED: Final = 7
INTERRUPTED: Final = 130

_BY_STATUS = {401: AUTHENTICATION, 403: AUTHENTICATION, 404: NOT_FOUND, 409: CONFLICT}


def exit_code(error: ZhubError) -> int:
    if isinstance(error, ApiError):
        return _BY_STATUS.get(error.status, ERROR)
    if isinstance(error, AuthenticationError | PermissionDeniedError | AccessEndedError):
        return AUTHENTICATION
    if isinstance(error, NotFoundError):
        return NOT_FOUND
    return CONFLICT if isinstance(error, ConflictError) else ERROR
