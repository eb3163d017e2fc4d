"""All errors that zhub raises on purpose, in one tree.

::

    ZhubError
    ├── InvalidRequestError        (param, code)   the request is invalid
    │   ├── InvalidDatasetError    (problems)      rows that break the schema, with their line numbers
    │   ├── UnsupportedModelError                  a base model that cannot be adapted
    │   ├── AddressRefusedError    (host, address) webhooks must not be sent to this address
    │   └── IdempotencyMismatchError               one Idempotency-Key, two different bodies
    ├── AuthenticationError                        no API key, or an unknown one
    ├── PermissionDeniedError      (scope)         the key is known and lacks a scope
    ├── NotFoundError              (kind, id)
    ├── QuotaExceededError                         the organisation has reached a quota
    ├── ConflictError                              the object's state forbids the request
    │   └── NotReadyError                          the object is not ready yet; try again
    ├── UnavailableError                           a service that zhub needs does not answer; try again
    │   ├── SandboxUnavailableError                programs cannot be confined on this machine, so none is run
    │   └── StoreError             (key)
    │       ├── StoreAwayError             (directory)
    │       ├── ObjectMissingError
    │       └── DigestMismatchError (expected, actual)
    ├── ApiError                   (status, code, param, request_id)  the API's own refusal, seen by its client
    ├── SchemaVersionError         (found, expected)  the database is not at this release's revision
    ├── EmbeddedError                              the embedded stack cannot start or continue
    ├── LeaseLostError             (job_id, fence) another attempt owns the job; never leaves the workers
    ├── DeposedError                               another scheduler leads; never leaves the scheduler
    └── TrainingError                              fails the job
        ├── NonFiniteLossError     (step)
        ├── RewardError            (name)
        │   ├── RewardTimeoutError
        │   └── RewardNotANumberError
        ├── ConstantRewardError    (reward)
        ├── OutOfMemoryError                       a single row does not fit into the device's memory
        ├── PromptTooLongError     (line, tokens, limit)
        ├── BasisMismatchError     (expected, actual)
        └── ArtifactError                          a file of an expert that must not be loaded

The class's docstring says what happened, the attributes are the facts, and the message names the object, what was
expected and what was found. ``zhub_api.errors`` has one table of HTTP statuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ZhubError(Exception):
    """The root of every error that zhub raises on purpose."""

    code = "error"


class InvalidRequestError(ZhubError):
    """The request is invalid; ``param`` names the field at fault."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or type(self).code


@dataclass(frozen=True)
class RowProblem:
    """A problem in one line of a dataset file; ``line`` counts from 1."""

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
    """A URL leads to an address to which webhooks must not be sent."""

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
    """The request has no API key, or an unknown one."""

    code = "invalid_api_key"


class PermissionDeniedError(ZhubError):
    """The API key is known and lacks a scope."""

    code = "missing_scope"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This API key lacks the scope '{scope}'. Use a key that has it, or ask an owner for one.")
        self.scope = scope


class NotFoundError(ZhubError):
    """The object does not exist, or the caller's key must not see it."""

    code = "not_found"

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"No such {kind}: '{name}'." + (f" {hint}" if hint else ""))
        self.kind = kind
        self.name = name


class QuotaExceededError(ZhubError):
    """The organisation has reached a quota."""

    code = "quota_exceeded"


class ConflictError(ZhubError):
    """The object is in a state that forbids the request."""

    code = "conflict"


class NotReadyError(ConflictError):
    """The object is not ready yet; the same call may succeed later."""

    code = "not_ready"


class IdempotencyMismatchError(InvalidRequestError):
    """Two requests with the same Idempotency-Key have different bodies."""

    code = "idempotency_mismatch"


class UnavailableError(ZhubError):
    """A service that zhub needs did not answer; the same call may succeed later."""

    code = "unavailable"


class SandboxUnavailableError(UnavailableError):
    """Programs cannot be confined on this machine, so none is run. The message says what is missing and the remedy."""

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
    """The store's directory is missing or replaced, for instance because its disk is not mounted."""

    code = "store_away"

    def __init__(self, directory: str, *, key: str) -> None:
        super().__init__(
            f"{key}: the object store '{directory}' is not there, or no longer the one that was written to. Mount its "
            "disk again; for a new store, make the directory above it.",
            key=key,
        )
        self.directory = directory


class ObjectMissingError(StoreError):
    """The store has no object with this key."""

    code = "object_missing"

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: no such object", key=key)


class DigestMismatchError(StoreError):
    """The bytes do not have the expected digest. They are never used."""

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
    """The database's schema is not at the revision that this release needs."""

    code = "schema_version"

    def __init__(self, found: str | None, expected: str) -> None:
        remedy = "run `zhub db upgrade`" if found is None or found < expected else "start the newer release"
        super().__init__(f"The database is at revision {found or 'none'}, this release needs {expected}: {remedy}.")
        self.found = found
        self.expected = expected


class EmbeddedError(ZhubError):
    """The embedded stack cannot start, or cannot continue."""

    code = "embedded"


class LeaseLostError(ZhubError):
    """Another attempt owns the job. Never leaves the workers."""

    code = "lease_lost"

    def __init__(self, job_id: object, fence: int) -> None:
        super().__init__(f"job {job_id}: fence {fence} is no longer the owner")
        self.job_id = job_id
        self.fence = fence


class DeposedError(ZhubError):
    """Another scheduler leads now; this transaction is rolled back."""

    code = "deposed"


class TrainingError(ZhubError):
    """A retry of the job cannot succeed; the job fails with this message."""

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
    """A grader raised an error, or cannot grade this row."""

    code = "reward_error"

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"grader '{name}': {message}")
        self.name = name


class ConstantRewardError(TrainingError):
    """All sampled answers of the base have the same reward, so training has no signal."""

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
    """A single row does not fit into the device's memory."""

    code = "out_of_memory"

    def __init__(self) -> None:
        super().__init__(
            "The device has too little free memory for a single row. Shorten the prompts, lower max_new_tokens, "
            "or use a smaller base model."
        )


class RewardTimeoutError(RewardError):
    """A grader did not finish within its time limit."""

    code = "reward_timeout"


class RewardNotANumberError(RewardError):
    """A grader returned a value that is not a finite number."""

    code = "reward_not_a_number"


class PromptTooLongError(TrainingError):
    """A prompt leaves no room in the model's context for an answer."""

    code = "prompt_too_long"

    def __init__(self, line: int, tokens: int, limit: int) -> None:
        super().__init__(
            f"line {line}: the row has {tokens} tokens, and at most {limit} fit this base model. Shorten or drop it."
        )
        self.line = line
        self.tokens = tokens
        self.limit = limit


class BasisMismatchError(TrainingError):
    """A z was trained on another basis than this one; here it would be noise."""

    code = "basis_mismatch"

    def __init__(self, message: str, *, expected: str = "", actual: str = "") -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class ArtifactError(TrainingError):
    """A file of an expert is malformed and must not be loaded."""

    code = "invalid_artifact"
