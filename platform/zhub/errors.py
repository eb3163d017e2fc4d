"""Every error that zhub raises on purpose, in one tree.

::

    ZhubError
    ├── InvalidRequestError        (param, code)   what was asked for cannot be done as asked
    │   ├── InvalidDatasetError    (problems)      rows that break the schema, with their line numbers
    │   ├── UnsupportedModelError                  a base model that cannot be adapted
    │   ├── AddressRefusedError    (host, address) a webhook must not go there
    │   └── IdempotencyMismatchError               one Idempotency-Key, two different bodies
    ├── AuthenticationError                        no key, or not a known one
    ├── PermissionDeniedError      (scope)         the key is known and may not do this
    ├── NotFoundError              (kind, id)
    ├── QuotaExceededError                         the organisation has as much as it may
    ├── RateLimitedError           (limit, retry_after_s)  the organisation sends too many requests; try again
    ├── ConflictError                              the thing is in a state that forbids it
    │   └── NotReadyError                          it will be as asked in a while; try again
    ├── UnavailableError                           a part that zhub needs does not answer; try again
    │   ├── SandboxUnavailableError                programs cannot be confined here, so none is run
    │   └── StoreError             (key)
    │       ├── StoreAwayError             (directory)
    │       ├── ObjectMissingError
    │       └── DigestMismatchError (expected, actual)
    ├── ApiError                   (status, code, param, request_id)  the API's own refusal, seen by its client
    ├── SchemaVersionError         (found, expected)  the database is not at this release's revision
    ├── EmbeddedError                              the embedded stack cannot start or go on
    ├── LeaseLostError             (job_id, fence) another attempt owns the job; never leaves the workers
    ├── DeposedError                               another scheduler leads; never leaves the scheduler
    └── TrainingError                              fails the job
        ├── NonFiniteLossError     (step)
        ├── RewardError            (name)
        │   ├── RewardTimeoutError
        │   └── RewardNotANumberError
        ├── ConstantRewardError    (reward)
        ├── OutOfMemoryError                       not even one row fits the device
        ├── PromptTooLongError     (line, tokens, limit, rows)
        ├── BasisMismatchError     (expected, actual)
        └── ArtifactError                          a file of an expert that must not be loaded

The class's docstring says what happened, the attributes are the facts, the message names the thing,
what was expected and what was found. HTTP statuses live in one table, in ``zhub_api.errors``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_ROWS_NAMED = 200


class ZhubError(Exception):
    """The root of every error that zhub raises on purpose."""

    code = "error"


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


class AuthenticationError(ZhubError):
    """The request carries no API key, or one that is not known."""

    code = "invalid_api_key"


class PermissionDeniedError(ZhubError):
    """The API key is known and lacks a scope."""

    code = "missing_scope"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This API key lacks the scope '{scope}'. Use a key that has it, or ask an owner for one.")
        self.scope = scope


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


class ConflictError(ZhubError):
    """The thing is in a state that forbids what was asked."""

    code = "conflict"


class NotReadyError(ConflictError):
    """The thing is still being made ready; the same call may succeed in a while."""

    code = "not_ready"


class IdempotencyMismatchError(InvalidRequestError):
    """One Idempotency-Key came with two different bodies."""

    code = "idempotency_mismatch"


class UnavailableError(ZhubError):
    """A part that zhub needs did not answer; the same call may succeed later."""

    code = "unavailable"


class SandboxUnavailableError(UnavailableError):
    """Programs cannot be confined on this machine, so none is run; the message says what is missing and what to do."""

    code = "sandbox_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(f"The sandbox cannot run here. {message}")


class StoreError(UnavailableError):
    """The object store failed."""

    code = "store_error"

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class StoreAwayError(StoreError):
    """The directory that holds the objects is away, with all of them, as when its disk is not mounted."""

    code = "store_away"

    def __init__(self, directory: str, *, key: str) -> None:
        super().__init__(
            f"{key}: the object store '{directory}' is not there, or no longer the one that was written to. Mount its "
            "disk again; for a new store, make the directory above it.",
            key=key,
        )
        self.directory = directory


class ObjectMissingError(StoreError):
    """There is no object under this key."""

    code = "object_missing"

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: no such object", key=key)


class DigestMismatchError(StoreError):
    """The bytes are not those that the digest names: refused, never used."""

    code = "digest_mismatch"

    def __init__(self, key: str, *, expected: str, actual: str) -> None:
        super().__init__(f"{key}: expected sha256 {expected}, got {actual}", key=key)
        self.expected = expected
        self.actual = actual


class ApiError(ZhubError):
    """The API refused a request, or failed; the message is the API's own."""

    code = "api_error"

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{message} (request {request_id})" if status >= 500 and request_id else message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.request_id = request_id


class SchemaVersionError(ZhubError):
    """The database is not at the revision that this release was written for."""

    code = "schema_version"

    def __init__(self, found: str | None, expected: str) -> None:
        remedy = "run `zhub db upgrade`" if found is None or found < expected else "start the newer release"
        super().__init__(f"The database is at revision {found or 'none'}, this release needs {expected}: {remedy}.")
        self.found = found
        self.expected = expected


class EmbeddedError(ZhubError):
    """The embedded stack cannot start, or cannot go on."""

    code = "embedded"


class LeaseLostError(ZhubError):
    """Another attempt owns the job. Never leaves the workers."""

    code = "lease_lost"

    def __init__(self, job_id: object, fence: int) -> None:
        super().__init__(f"job {job_id}: fence {fence} is no longer the owner")
        self.job_id = job_id
        self.fence = fence


class DeposedError(ZhubError):
    """Another scheduler leads now; whatever this transaction did is rolled back."""

    code = "deposed"


class TrainingError(ZhubError):
    """The job cannot succeed however often it is tried; it fails with this message."""

    code = "training_error"


class NonFiniteLossError(TrainingError):
    """The loss or the gradient became NaN or infinite."""

    code = "non_finite_loss"

    def __init__(self, step: int) -> None:
        super().__init__(
            f"step {step}: the loss is not a finite number. Lower learning_rate, or look for extreme rewards."
        )
        self.step = step


class RewardError(TrainingError):
    """A grader raised, or cannot grade this row."""

    code = "reward_error"

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"grader '{name}': {message}")
        self.name = name


class ConstantRewardError(TrainingError):
    """Every sampled answer of the base is rewarded alike, so there is nothing to learn from."""

    code = "constant_reward"

    def __init__(self, reward: float, answers: int, unread: int) -> None:
        unreadable = f" {unread} of them could not be read by the grader." if unread else ""
        super().__init__(
            f"All {answers} sampled answers of the base got the reward {reward:g}.{unreadable} Training learns from "
            "differences between answers to one prompt. Check the grader on an answer that you know to be right "
            "(POST /v1/fine_tuning/alpha/graders/run), say in the prompt which form the answer must have, reward "
            "partly right answers, or begin with supervised training. To train all the same, set preflight_prompts to "
            "0."
        )
        self.reward = reward


class OutOfMemoryError(TrainingError):
    """Not even one row fits the device's memory."""

    code = "out_of_memory"

    def __init__(self) -> None:
        super().__init__(
            "The device has too little free memory for a single row. Shorten the prompts, lower max_new_tokens, "
            "or use a smaller base model."
        )


class RewardTimeoutError(RewardError):
    """A grader did not come to an end in its time."""

    code = "reward_timeout"


class RewardNotANumberError(RewardError):
    """A grader gave something that is not a finite number."""

    code = "reward_not_a_number"


@dataclass(frozen=True)
class LongRow:
    """A row with more tokens than the context of a base model, by its line in the training or the validation file."""

    line: int
    tokens: int
    in_validation_file: bool = False

    def __str__(self) -> str:
        return f"{'validation file, ' if self.in_validation_file else ''}line {self.line} ({self.tokens:,} tokens)"


class PromptTooLongError(TrainingError):
    """Prompts leave no room in the model's context for an answer: all of them, so that they are mended at once."""

    code = "prompt_too_long"

    def __init__(self, line: int, tokens: int, limit: int, rows: Sequence[LongRow] = ()) -> None:
        self.line, self.tokens, self.limit = line, tokens, limit
        self.rows = rows or [LongRow(line, tokens)]
        named = ", ".join(map(str, self.rows[:MAX_ROWS_NAMED]))
        more = f" and {len(self.rows) - MAX_ROWS_NAMED:,} more" if len(self.rows) > MAX_ROWS_NAMED else ""
        super().__init__(
            f"At most {limit:,} tokens fit this base model, and these rows have more: {named}{more}. Shorten or drop "
            "them; a training leaves them out or cuts them with the hyper-parameter 'long_rows' at 'skip' or 'cut'."
        )


class BasisMismatchError(TrainingError):
    """A z belongs to another basis than the one at hand; it would be noise there."""

    code = "basis_mismatch"

    def __init__(self, message: str, *, expected: str = "", actual: str = "") -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class ArtifactError(TrainingError):
    """A file of an expert is malformed and must not be loaded."""

    code = "invalid_artifact"
