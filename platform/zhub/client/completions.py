"""Stored completions: whether there are any, listed, rated and deleted."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.completions import CompletionDatasetRecord, CompletionSettingsRecord, StoredCompletionRecord
from zhub.client.wire.experts import FeedbackRecord
from zhub.errors import InvalidRequestError

PATH = "/v1/chat/completions"
SETTINGS = "/v1/stored_completions/settings"
DATASETS = "/v1/stored_completions/datasets"


class Completions:
    """Answers that were asked for with ``store``."""

    def __init__(self, http: Http, poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def settings(self) -> CompletionSettingsRecord:
        return CompletionSettingsRecord.model_validate(self._http.get(SETTINGS))

    def change_settings(self, **changes: Any) -> CompletionSettingsRecord:
        """Change ``enabled``, ``kept_days`` or ``redact``; needs a key with the scope ``project:write``."""
        return CompletionSettingsRecord.model_validate(self._http.post(SETTINGS, changes))

    def list(
        self, *, model: str | None = None, metadata: Mapping[str, str] | None = None, most: int | None = None
    ) -> Iterator[StoredCompletionRecord]:
        """The stored completions of the project, newest first, fetched page by page."""
        wanted = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        entries = self._http.pages(PATH, limit=100, most=most, model=model, order="desc", **wanted)
        return (StoredCompletionRecord.model_validate(entry) for entry in entries)

    def get(self, completion_id: str) -> StoredCompletionRecord:
        return StoredCompletionRecord.model_validate(self._http.get(f"{PATH}/{path_part(completion_id)}"))

    def messages(self, completion_id: str) -> Iterator[dict[str, Any]]:
        """The messages that were answered."""
        return self._http.pages(f"{PATH}/{path_part(completion_id)}/messages", limit=100)

    def label(self, completion_id: str, metadata: Mapping[str, str]) -> StoredCompletionRecord:
        """Replace all of its metadata."""
        body = {"metadata": dict(metadata)}
        return StoredCompletionRecord.model_validate(self._http.post(f"{PATH}/{path_part(completion_id)}", body))

    def rate(
        self,
        completion_id: str,
        *,
        score: float,
        choice: int = 0,
        reference: str | None = None,
        comment: str | None = None,
    ) -> FeedbackRecord:
        """Score one choice, with ``score`` in [-1, 1]."""
        body = {"score": score, "choice": choice, "reference": reference, "comment": comment}
        answer = self._http.post(f"{PATH}/{path_part(completion_id)}/feedback", body)
        return FeedbackRecord.model_validate(answer)

    def make_dataset(
        self,
        dataset: str,
        *,
        where: str = "",
        method: str = "supervised",
        max_rows: int | None = None,
        timeout_s: float = 600.0,
    ) -> CompletionDatasetRecord:
        """Make the next version of a dataset of the newest completions that ``where`` describes; wait until it is made.

        Its rows are checked afterwards, as those of an uploaded file.

        Raises:
            InvalidRequestError: it could not be made, and why.
            UnavailableError: nobody made it within ``timeout_s``.
        """
        body: dict[str, Any] = {"dataset": dataset, "where": where, "method": method}
        body |= {} if max_rows is None else {"max_rows": max_rows}
        made = CompletionDatasetRecord.model_validate(self._http.post(DATASETS, body))
        deadline = time.monotonic() + timeout_s
        while made.status == "queued":
            wait(self._poll_s, deadline, f"{made.id} was not made within {timeout_s:g} s")
            made = CompletionDatasetRecord.model_validate(self._http.get(f"{DATASETS}/{path_part(made.id)}"))
        if made.status == "failed":
            raise InvalidRequestError(made.error or f"{made.id} could not be made.", param="where")
        return made

    def delete(self, completion_id: str) -> None:
        self._http.delete(f"{PATH}/{path_part(completion_id)}")

    def delete_all(self) -> None:
        """Delete all of the project's; needs a key with the scope ``project:write``."""
        self._http.delete("/v1/stored_completions")
