"""Files and base models."""

import time
from collections.abc import Callable
from pathlib import Path

from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.training import BaseModelRecord, DatasetFile
from zhub.errors import (
    InvalidDatasetError,
    InvalidRequestError,
    RowProblem,
    UnsupportedModelError,
)
from zhub.registry.model_directory import ModelFiles, model_files


class Files:
    """Dataset files."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def upload(self, path: Path, *, purpose: str = "fine-tune") -> DatasetFile:
        """Send a JSONL file, read from disk in pieces; its rows are checked afterwards, see ``wait_processed``.

        With the ``purpose`` ``fine-tune`` it is pushed: the newest data of its dataset, on which schedules fire. With
        ``evals`` or ``user_data`` it can be used as well, and is no new data. Equal bytes are the file that there is.
        """
        if not path.is_file():
            raise InvalidRequestError(f"{path}: expected a JSONL file, found {_kind(path)}.", param="file")
        with path.open("rb") as file:
            answer = self._http.post_form("/v1/files", {"purpose": purpose}, {"file": (path.name, file)})
        return DatasetFile.model_validate(answer)

    def get(self, file_id: str) -> DatasetFile:
        return DatasetFile.model_validate(self._http.get(f"/v1/files/{path_part(file_id)}"))

    def list(self) -> list[DatasetFile]:
        """Every file of the project, newest first."""
        return [DatasetFile.model_validate(entry) for entry in self._http.pages("/v1/files", limit=1000)]

    def first_bytes(self, file_id: str) -> bytes:
        """The beginning of a file's content: the object store answers."""
        with self._http.stream("GET", f"/v1/files/{path_part(file_id)}/content") as response:
            return next(response.iter_bytes(1024), b"")

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


class BaseModels:
    """Base models: frozen weights that experts adapt."""

    def __init__(self, http: "Http", poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def add_directory(
        self,
        name: str,
        path: Path,
        *,
        chat_template: Path | None = None,
        cluster: str = "default",
        private: bool | None = None,
        started: Callable[[ModelFiles], None] = lambda _files: None,
        progress: Callable[[str, int], None] = lambda _name, _sent_bytes: None,
    ) -> BaseModelRecord:
        """Upload a Hugging Face directory and have it decomposed, see ``wait_ready``.

        ``cluster``: which workers decompose it. ``private``: only for the key's organisation; None: only where the key
        may not add base models for everybody. ``started`` is called with the files that are sent or
        skipped, ``progress`` with the name of a file and how many of its bytes have been sent.

        Raises:
            InvalidRequestError, UnsupportedModelError: the directory lacks something; nothing was sent.
        """
        files = model_files(path, chat_template)
        self._begin(name, cluster=cluster, private=private)
        started(files)
        for filename, source in files.uploads.items():
            self._http.put_file(f"/v1/base_models/{path_part(name)}/files/{path_part(filename)}", source, progress)
        return self._complete(name)

    def add_hub(
        self, name: str, hub_id: str, revision: str, *, cluster: str = "default", private: bool | None = None
    ) -> BaseModelRecord:
        """Add a model of the Hugging Face hub at a commit, which the workers fetch, and have it decomposed."""
        self._begin(name, cluster=cluster, private=private, hub_id=hub_id, hub_revision=revision)
        return self._complete(name)

    def get(self, name: str) -> BaseModelRecord:
        return BaseModelRecord.model_validate(self._http.get(f"/v1/base_models/{path_part(name)}"))

    def list(self) -> list[BaseModelRecord]:
        return [BaseModelRecord.model_validate(entry) for entry in self._http.pages("/v1/base_models", limit=100)]

    def wait_ready(
        self,
        name: str,
        *,
        progress: Callable[[BaseModelRecord], None] = lambda _base: None,
        timeout_s: float = 3600.0,
    ) -> BaseModelRecord:
        """Return the base model once it is decomposed; ``progress`` is called at every poll.

        Raises:
            UnsupportedModelError: it cannot be adapted.
            UnavailableError: it was not ready within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            base = self.get(name)
            progress(base)
            if base.status == "ready":
                return base
            if base.status == "error":
                raise UnsupportedModelError(f"The base model '{name}' cannot be used: {base.error}")
            wait(self._poll_s, deadline, f"The base model '{name}' was not ready within {timeout_s:g} s")

    def _begin(self, name: str, *, private: bool | None, **fields: str) -> None:
        asked = {} if private is None else {"private": private}
        self._http.post("/v1/base_models", {"name": name, **fields, **asked})

    def _complete(self, name: str) -> BaseModelRecord:
        return BaseModelRecord.model_validate(self._http.post(f"/v1/base_models/{path_part(name)}/complete", {}))


def _kind(path: Path) -> str:
    return "a directory" if path.is_dir() else "nothing"
