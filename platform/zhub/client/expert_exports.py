"""Expert versions in the forms that other software reads, fetched and checked."""

import hashlib
import secrets
import shutil
import time
from pathlib import Path

from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.answer import ENDED
from zhub.client.wire.experts import ExportRecord
from zhub.errors import ArtifactError, ConflictError, DigestMismatchError, InvalidRequestError
from zhub.manifest import CHUNK_BYTES, FileEntry

SINGLE_FILE = "zhub"  # the format that is one file, and no directory


class ExpertExports:
    """Exports of experts."""

    def __init__(self, http: Http, poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def create(
        self, model: str, as_format: str, *, rank: int | None = None, cluster: str | None = None
    ) -> ExportRecord:
        """Ask for a version as ``merged``, ``lora``, ``psoft`` or ``zhub``; what was exported lately is there at once.

        ``rank``: of a LoRA, at most. ``cluster``: which workers write it, where there are several kinds.
        """
        asked = {"model": model, "format": as_format, "rank": rank, "cluster": cluster}
        body = {name: value for name, value in asked.items() if value is not None}
        return ExportRecord.model_validate(self._http.post("/v1/expert_exports", body))

    def get(self, export_id: str) -> ExportRecord:
        return ExportRecord.model_validate(self._http.get(_path(export_id)))

    def reason(self, export_id: str) -> str:
        """What the export waits for."""
        return str(self._http.get(f"{_path(export_id)}/queue")["reason"])

    def wait_ended(self, export_id: str, *, timeout_s: float = 3600.0) -> ExportRecord:
        """Return the export once it has ended.

        Raises:
            UnavailableError: it had not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while (record := self.get(export_id)).status not in ENDED:
            wait(self._poll_s, deadline, f"{export_id} had not ended within {timeout_s:g} s")
        return record

    def fetch(self, export: ExportRecord, target: Path) -> Path:
        """Download what was exported, every byte checked, to a new directory, or, as ``zhub``, to a new file.

        Raises:
            DigestMismatchError: bytes that are not the export's; nothing is left behind.
            ConflictError: there is something else already.
            InvalidRequestError: nothing can be written there.
        """
        check_free(target)
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            unfinished.mkdir(parents=True)
        except OSError as exc:
            raise InvalidRequestError(f"{target}: nothing can be written there: {exc.strerror}.") from exc
        try:
            files = export.files or []
            for entry in files:
                self._download(export.id, entry, unfinished / _relative(entry.name))
            if export.format == SINGLE_FILE:
                (unfinished / files[0].name).rename(target)
            else:
                if target.is_dir():
                    target.rmdir()  # it is empty
                unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return target

    def _download(self, export_id: str, entry: FileEntry, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, left = hashlib.sha256(), entry.size_bytes
        url = f"{_path(export_id)}/files/{'/'.join(path_part(part) for part in entry.name.split('/'))}"
        with self._http.stream("GET", url) as response, path.open("xb") as file:
            for piece in response.iter_bytes(CHUNK_BYTES):
                file.write(piece)
                digest.update(piece)
                left -= len(piece)
                if left < 0:
                    break
        if digest.hexdigest() != entry.sha256:
            raise DigestMismatchError(entry.name, expected=entry.sha256, actual=digest.hexdigest())


def check_free(target: Path) -> None:
    """Raise ConflictError where an export cannot be put without writing over something."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConflictError(f"{target} exists already. Choose a name that does not exist yet.")


def _relative(name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ArtifactError(f"The export has a file '{name}', which cannot lie in its directory.")
    return path


def _path(export_id: str) -> str:
    return f"/v1/expert_exports/{path_part(export_id)}"
