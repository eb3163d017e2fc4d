"""What zhub, or a part that it needs, could not do."""

from pathlib import Path

from zhub.errors.root import ZhubError


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


class DiskError(UnavailableError):
    """A file that a process keeps for itself cannot be written, as on a disk that is full."""

    code = "disk_error"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.parent}: {reason}. Free space there, or let ZHUB_CACHE_DIR be on another disk.")
        self.path = path


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
