"""Every error that zhub raises on purpose, in one tree.

::

    ZhubError
    ├── InvalidRequestError        (param, code)   what was asked for cannot be done as asked
    │   ├── InvalidDatasetError    (problems)      rows that break the schema, with their line numbers
    │   ├── UnsupportedModelError                  a base model that cannot be adapted
    │   ├── UnsupportedAdapterError                an expert from elsewhere that would answer otherwise here
    │   ├── AddressRefusedError    (host, address) a webhook must not go there
    │   ├── SearchQueryError       (query, position) a search of the catalogue that cannot be read
    │   └── IdempotencyMismatchError               one Idempotency-Key, two different bodies
    ├── AuthenticationError                        no key, or not a known one
    ├── PermissionDeniedError      (scope)         the key is known and may not do this
    │   └── RoleTooLowError                        it gives or takes a role above its own
    ├── AccessEndedError                           the key is known, and its organisation or project is closed
    ├── AccessNotGrantedError      (name, needs)   the caller sees an expert of others, and may not do this with it
    ├── GrantEndedError            (name)          the right to use an expert ended while it answered
    ├── NotFoundError              (kind, id)
    ├── QuotaExceededError                         the organisation has as much as it may
    ├── BudgetSpentError                           the organisation has used up its budget for the month
    ├── RateLimitedError           (limit, retry_after_s)  the organisation sends too many requests; try again
    ├── TooManyAtOnceError         (limit)         the organisation does as much at a time as it may; try again
    ├── SlowReaderError                            a client takes its stream more slowly than it comes
    ├── ConflictError                              the thing is in a state that forbids it
    │   └── NotReadyError                          it will be as asked in a while; try again
    ├── UnavailableError                           a part that zhub needs does not answer; try again
    │   ├── DiskError              (path)          a process's own disk is full, or fails
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
        ├── NonFiniteLogitsError                   the model scores its next token with NaN or infinity
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

from zhub.errors.failures import (
    ApiError,
    DeposedError,
    DigestMismatchError,
    DiskError,
    EmbeddedError,
    LeaseLostError,
    ObjectMissingError,
    SandboxUnavailableError,
    SchemaVersionError,
    StoreAwayError,
    StoreError,
    UnavailableError,
)
from zhub.errors.refusals import (
    AccessEndedError,
    AccessNotGrantedError,
    AddressRefusedError,
    AuthenticationError,
    BudgetSpentError,
    ConflictError,
    GrantEndedError,
    IdempotencyMismatchError,
    InvalidDatasetError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
    RoleTooLowError,
    RowProblem,
    SearchQueryError,
    SlowReaderError,
    TooManyAtOnceError,
    UnsupportedAdapterError,
    UnsupportedModelError,
)
from zhub.errors.root import ZhubError
from zhub.errors.training import (
    ArtifactError,
    BasisMismatchError,
    ConstantRewardError,
    LongRow,
    NonFiniteLogitsError,
    NonFiniteLossError,
    OutOfMemoryError,
    PromptTooLongError,
    RewardError,
    RewardNotANumberError,
    RewardTimeoutError,
    TrainingError,
)

__all__ = [
    "AccessEndedError",
    "AccessNotGrantedError",
    "BudgetSpentError",
    "GrantEndedError",
    "AddressRefusedError",
    "ApiError",
    "ArtifactError",
    "AuthenticationError",
    "BasisMismatchError",
    "ConflictError",
    "ConstantRewardError",
    "DeposedError",
    "DigestMismatchError",
    "DiskError",
    "EmbeddedError",
    "IdempotencyMismatchError",
    "InvalidDatasetError",
    "InvalidRequestError",
    "LeaseLostError",
    "LongRow",
    "NonFiniteLogitsError",
    "NonFiniteLossError",
    "NotFoundError",
    "NotReadyError",
    "RateLimitedError",
    "ObjectMissingError",
    "OutOfMemoryError",
    "PermissionDeniedError",
    "PromptTooLongError",
    "QuotaExceededError",
    "RewardError",
    "RewardNotANumberError",
    "RewardTimeoutError",
    "RoleTooLowError",
    "RowProblem",
    "SandboxUnavailableError",
    "SchemaVersionError",
    "SearchQueryError",
    "SlowReaderError",
    "StoreAwayError",
    "StoreError",
    "TooManyAtOnceError",
    "TrainingError",
    "UnavailableError",
    "UnsupportedAdapterError",
    "UnsupportedModelError",
    "ZhubError",
]
