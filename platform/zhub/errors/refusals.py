"""What a request is refused for."""

from collections.abc import Sequence
from dataclasses import dataclass

from zhub.errors.root import ZhubError


class InvalidRequestError(ZhubError):
    """What was asked for cannot be done as asked; ``param`` names the field at fault."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or type(self).code


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong with one line of a dataset file; ``line`` counts from 1."""

    line: int
    code: str
    message: str


class InvalidDatasetError(InvalidRequestError):
    """A dataset has rows that break the schema."""

    code = "invalid_dataset"

    def __init__(self, message: str, problems: Sequence[RowProblem], *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.problems = list(problems)


class UnsupportedModelError(InvalidRequestError):
    """A base model that zhub cannot load or adapt."""

    code = "unsupported_model"


class UnsupportedAdapterError(InvalidRequestError):
    """An expert that was made elsewhere and would answer otherwise here, or cannot answer at all."""

    code = "unsupported_adapter"


class AddressRefusedError(InvalidRequestError):
    """A URL leads to an address that nothing may be sent to."""

    code = "address_refused"

    def __init__(self, host: str, address: str, *, never: bool) -> None:
        has = "" if host == address else f" has the address {address}, which"
        remedy = (
            "Link-local, multicast and reserved addresses are never sent to."
            if never
            else "Use a public address. An operator may allow private ones with ZHUB_WEBHOOK_ALLOW_PRIVATE=1."
        )
        super().__init__(f"'{host}'{has} is not public, and nothing is sent to it. {remedy}", param="url")
        self.host = host
        self.address = address


class SearchQueryError(InvalidRequestError):
    """A search of the catalogue cannot be read; ``position`` is that of the first character at fault, from 0."""

    code = "invalid_search"

    def __init__(self, query: str, position: int, why: str) -> None:
        at = query[position:].split()[0][:40] if query[position:].strip() else "the end"
        super().__init__(f"q: at character {position + 1}, '{at}': {why}.", param="q")
        self.query = query
        self.position = position


class AuthenticationError(ZhubError):
    """The request carries no API key, or one that is not known."""

    code = "invalid_api_key"


class PermissionDeniedError(ZhubError):
    """The API key is known and lacks a scope, or its owner the role that has it."""

    code = "missing_scope"

    def __init__(self, scope: str, *, message: str | None = None) -> None:
        super().__init__(
            message or f"This API key lacks the scope '{scope}'. Use a key that has it, or ask an owner for one."
        )
        self.scope = scope


class AccessNotGrantedError(ZhubError):
    """The caller sees an expert of another organisation or project, and may not do with it what was asked."""

    code = "access_not_granted"

    def __init__(self, name: str, needs: str, has: str) -> None:
        super().__init__(
            f"Your organisation may '{has}' {name}, and this takes '{needs}'. Ask its owner for it (POST "
            "/v1/access_requests)."
        )
        self.name = name
        self.needs = needs


class GrantEndedError(ZhubError):
    """The right to use an expert of another organisation ended while it answered, or could not be confirmed."""

    code = "grant_ended"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Your organisation's access to {name} has ended, or could not be confirmed for some seconds, and so the "
            "answer ends here."
        )
        self.name = name


class RoleTooLowError(PermissionDeniedError):
    """The caller would give or take a role above its own."""

    code = "role_too_low"

    def __init__(self, own: str, other: str) -> None:
        super().__init__(other, message=f"You are '{own}' here, and neither give nor take the role '{other}'. Ask one.")


class AccessEndedError(ZhubError):
    """The API key is known, and what it is for has been suspended or archived."""

    code = "access_ended"


class NotFoundError(ZhubError):
    """There is no such thing, or this key may not know of it."""

    code = "not_found"

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"No such {kind}: '{name}'." + (f" {hint}" if hint else ""))
        self.kind = kind
        self.name = name
        if kind in ("model", "base model"):
            self.code = "model_not_found"  # by which clients of the OpenAI dialect know it


class QuotaExceededError(ZhubError):
    """The organisation has as much of something as its quota allows."""

    code = "quota_exceeded"


class BudgetSpentError(ZhubError):
    """The organisation has used up its budget for the month."""

    code = "insufficient_quota"


class RateLimitedError(ZhubError):
    """The organisation has sent as many requests as it may in a minute; try again in ``retry_after_s`` seconds."""

    code = "rate_limit_exceeded"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"Your organisation sent more than {limit:,} requests in a minute. Try again in {retry_after_s:.1f} s, or "
            "ask the platform's operator for more."
        )
        self.limit = limit
        self.retry_after_s = retry_after_s


class TooManyAtOnceError(ZhubError):
    """The organisation does as much of something at a time as a process does for one; it may try again at once."""

    code = "too_many_at_once"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(
            f"Your organisation has {limit} {what} here at this moment, which is as many as it may. Try again when one "
            "has ended."
        )
        self.limit = limit


class SlowReaderError(ZhubError):
    """A client takes a stream so much more slowly than it comes that the rest is not kept for it."""

    code = "slow_reader"

    def __init__(self, characters: int) -> None:
        super().__init__(
            f"The stream ends here: {characters:,} characters of it waited for their client, which is as many as are "
            "kept. Read faster, or ask without 'stream'."
        )


class ConflictError(ZhubError):
    """The thing is in a state that forbids what was asked."""

    code = "conflict"


class NotReadyError(ConflictError):
    """The thing is still being made ready; the same call may succeed in a while."""

    code = "not_ready"


class IdempotencyMismatchError(InvalidRequestError):
    """One Idempotency-Key came with two different bodies."""

    code = "idempotency_mismatch"
