"""Dataset files: sent as they are or as rows that they become, listed, fetched, deleted."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.answer import ENDED
from zhub.client.wire.training import ClassificationDataset, DatasetFile, TokenCountRecord
from zhub.datasets.conversion.converting import Conversion, as_rows
from zhub.datasets.conversion.mapping import ChosenColumns, Method
from zhub.errors import (
    ConflictError,
    DigestMismatchError,
    InvalidDatasetError,
    InvalidRequestError,
    RowProblem,
    TrainingError,
    UnavailableError,
)
from zhub.manifest import CHUNK_BYTES, sha256_file
from zhub.storage.directory import replacing

PAGE = 1000


class Files:
    """Dataset files."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def upload(self, path: Path, *, purpose: str = "fine-tune", name: str | None = None) -> DatasetFile:
        """Send a JSONL file, read from disk in pieces; its rows are checked afterwards, see ``wait_processed``.

        With the ``purpose`` ``fine-tune`` it is pushed: the newest data of its dataset, on which schedules fire. With
        ``evals`` or ``user_data`` it can be used as well, and is no new data. Equal bytes are the file that there is.
        """
        if not path.is_file():
            kind = "a directory" if path.is_dir() else "nothing"
            raise InvalidRequestError(f"{path}: expected a JSONL file, found {kind}.", param="file")
        with path.open("rb") as file:
            answer = self._http.post_form("/v1/files", {"purpose": purpose}, {"file": (name or path.name, file)})
        return DatasetFile.model_validate(answer)

    def upload_converted(
        self,
        path: Path,
        *,
        purpose: str = "fine-tune",
        method: Method | None = None,
        chosen: ChosenColumns | None = None,
        skip_incomplete: bool = False,
        converted: Callable[[Conversion], None] = lambda _conversion: None,
    ) -> DatasetFile:
        """Send the rows of a data file: CSV, TSV, Parquet, JSON or JSON Lines, also compressed by gzip.

        It is recognised by its content, and made into rows on this machine; ``converted`` gets what became of it before
        anything is sent, and may raise to stop that. JSON Lines of rows are sent as they are. ``method``: what will
        train on them. ``chosen``: what the columns mean, where their names do not say it.

        Raises:
            InvalidRequestError: in one sentence what the file is, what is wrong with it, and what to do.
        """
        with as_rows(path, chosen=chosen, method=method, skip_incomplete=skip_incomplete) as rows:
            if rows.conversion is not None:
                converted(rows.conversion)
            return self.upload(rows.path, purpose=purpose, name=rows.name)

    def get(self, file_id: str) -> DatasetFile:
        return DatasetFile.model_validate(self._http.get(f"/v1/files/{path_part(file_id)}"))

    def list(self, *, search: str | None = None, limit: int | None = None) -> list[DatasetFile]:
        """The files of the project, newest first: all, or those with ``search`` in their name, at most ``limit``."""
        pages = self._http.pages("/v1/files", limit=PAGE, most=limit, search=search)
        return [DatasetFile.model_validate(entry) for entry in pages]

    def delete(self, file_id: str, *, force: bool = False, detach: bool = False) -> None:
        """Delete a file; with ``force`` also one that published versions were trained on.

        Raises:
            ApiError: with the status 409 where something needs it, by name.
        """
        self._http.delete(f"/v1/files/{path_part(file_id)}", force=force or None, detach=detach or None)

    def pull(self, file_id: str, target: Path) -> DatasetFile:
        """Download a file, every byte checked against its digest. One that is there with these bytes is left as it is.

        Raises:
            DigestMismatchError: bytes that are not the file's; nothing is left behind.
            ConflictError: something else is at ``target``.
            InvalidRequestError: nothing can be written there.
        """
        file = self.get(file_id)
        if target.exists():
            if target.is_file() and sha256_file(target) == file.sha256:
                return file
            raise ConflictError(f"{target} exists already. Remove it, or choose another file.")
        digest = hashlib.sha256()
        try:
            with self.stream(file_id) as pieces, replacing(target) as output:
                for piece in pieces:
                    digest.update(piece)
                    output.write(piece)
                if digest.hexdigest() != file.sha256:
                    raise DigestMismatchError(file.filename, expected=file.sha256, actual=digest.hexdigest())
        except OSError as exc:
            raise InvalidRequestError(f"{target} cannot be written: {exc.strerror}.") from exc
        return file

    @contextmanager
    def stream(self, file_id: str) -> Iterator[Iterator[bytes]]:
        """The bytes of a file in pieces. They are not checked."""
        with self._http.stream("GET", f"/v1/files/{path_part(file_id)}/content") as response:
            yield response.iter_bytes(CHUNK_BYTES)

    def first_bytes(self, file_id: str) -> bytes:
        """The beginning of a file's content: the object store answers."""
        with self.stream(file_id) as pieces:
            return next(pieces, b"")

    def wait_processed(
        self, file_id: str, *, progress: Callable[[DatasetFile], None] = lambda _file: None, timeout_s: float = 600.0
    ) -> DatasetFile:
        """Return the file once its rows have been checked; ``progress`` is called at every poll.

        Raises:
            InvalidDatasetError: rows that break the schema, by their lines.
            UnavailableError: nobody checked them within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            file = self.get(file_id)
            progress(file)
            if file.status == "processed":
                return file
            if file.status == "error":
                problems = [RowProblem(**problem) for problem in (file.validation or {}).get("problems", [])]
                raise InvalidDatasetError(f"{file.filename} did not pass validation.\n{file.status_details}", problems)
            wait(self._poll_s, deadline, f"{file.filename} was not checked within {timeout_s:g} s")

    def classification(
        self,
        name: str,
        experts: Sequence[str],
        *,
        others: Sequence[str] = (),
        rows_per_label: int | None = None,
        seed: int | None = None,
        timeout_s: float = 600.0,
    ) -> ClassificationDataset:
        """The dataset ``name`` for a classifier, of prompts that these experts were trained on, once it is made.

        ``others``: ids of files whose prompts are for none of them.

        Raises:
            TrainingError: it could not be made; with the reason.
            UnavailableError: nobody made it within ``timeout_s``.
        """
        asked = {"rows_per_label": rows_per_label, "seed": seed}
        body: dict[str, Any] = {"name": name, "experts": list(experts), "others": list(others)}
        body |= {field: value for field, value in asked.items() if value is not None}
        answer = self._http.post("/v1/classification_datasets", body)
        made = ClassificationDataset.model_validate(answer)
        deadline = time.monotonic() + timeout_s
        while made.status not in ENDED:
            wait(self._poll_s, deadline, f"The rows of {name} were not made within {timeout_s:g} s")
            path = f"/v1/classification_datasets/{path_part(made.id)}"
            made = ClassificationDataset.model_validate(self._http.get(path))
        if made.file is None:
            reason = (made.error or {}).get("message") or f"its job was {made.status}"
            raise TrainingError(f"The rows of {name} were not made: {reason}")
        return made

    def count_tokens(self, file_id: str, model: str, *, timeout_s: float = 600.0) -> TokenCountRecord:
        """Which rows of a checked file have more tokens than the context of a base, or of an expert's base.

        Raises:
            TrainingError: a row that the chat template refuses.
            UnavailableError: nobody counted them within ``timeout_s``, or the count failed by itself.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._http.post(f"/v1/files/{path_part(file_id)}/token_counts", {"model": model})
            count = TokenCountRecord.model_validate(answer)
            if count.status == "counted":
                return count
            if count.status == "failed":
                error = count.error or {}
                message = f"The tokens of {file_id} were not counted: {error.get('message')}"
                # What the chat template refuses here it refuses in the training. Anything else may be well there.
                raise (TrainingError if error.get("code") == TrainingError.code else UnavailableError)(message)
            wait(self._poll_s, deadline, f"The tokens of {file_id} were not counted within {timeout_s:g} s")
