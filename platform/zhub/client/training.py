"""Base models."""

import time
from collections.abc import Callable
from pathlib import Path

from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.training import BaseModelRecord
from zhub.errors import UnsupportedModelError
from zhub.registry.model_directory import ModelFiles, model_files


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
        rank: int | None = None,
        started: Callable[[ModelFiles], None] = lambda _files: None,
        progress: Callable[[str, int], None] = lambda _name, _sent_bytes: None,
    ) -> BaseModelRecord:
        """Upload a Hugging Face directory and have it decomposed, see ``wait_ready``.

        ``cluster``: which workers decompose it. ``private``: only for the key's organisation; None: only where the key
        may not add base models for everybody. ``rank``: how many leading singular directions of each matrix experts
        move; None: all. ``started`` is called with the files that are sent or skipped, ``progress`` with the name of a
        file and how many of its bytes have been sent.

        Raises:
            InvalidRequestError, UnsupportedModelError: the directory lacks something; nothing was sent.
        """
        files = model_files(path, chat_template)
        self._begin(name, cluster=cluster, private=private, rank=rank)
        started(files)
        for filename, source in files.uploads.items():
            self._http.put_file(f"/v1/base_models/{path_part(name)}/files/{path_part(filename)}", source, progress)
        return self._complete(name)

    def add_hub(
        self,
        name: str,
        hub_id: str,
        revision: str,
        *,
        cluster: str = "default",
        private: bool | None = None,
        rank: int | None = None,
    ) -> BaseModelRecord:
        """Add a model of the Hugging Face hub at a commit, which the workers fetch, and have it decomposed."""
        self._begin(name, cluster=cluster, private=private, rank=rank, hub_id=hub_id, hub_revision=revision)
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

    def _begin(self, name: str, **fields: str | bool | int | None) -> None:
        asked = {field: value for field, value in fields.items() if value is not None}
        self._http.post("/v1/base_models", {"name": name, **asked})

    def _complete(self, name: str) -> BaseModelRecord:
        return BaseModelRecord.model_validate(self._http.post(f"/v1/base_models/{path_part(name)}/complete", {}))
