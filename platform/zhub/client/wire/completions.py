"""Answers about stored completions, and datasets that are made of them."""

from typing import Any

from zhub.client.wire.answer import Answer


class Rating(Answer):
    """The mean score of the feedback on the best-rated choice, by its index; ``count`` pieces on all choices."""

    mean: float
    choice: int
    count: int


class StoredCompletionRecord(Answer):
    """A stored completion; ``experts`` are those that answered."""

    id: str
    created: int
    model: str
    experts: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    metadata: dict[str, str]
    rating: Rating | None

    @property
    def answer(self) -> str:
        """Of the best-rated choice, or the first; empty where it only calls tools."""
        choice = self.choices[self.rating.choice if self.rating else 0]
        return choice["message"]["content"] or ""


class CompletionSettingsRecord(Answer):
    """Whether the project stores completions, for how many days, and what is redacted of them."""

    enabled: bool
    kept_days: int
    redact: list[str]
    stored_bytes: int


class Provenance(Answer):
    """What a dataset was made of. ``left_out`` are completions that are no rows; ``cut``: whether there were more."""

    where: str
    method: str
    rows: int
    left_out: int
    oldest_at: str
    newest_at: str
    cut: bool


class CompletionDatasetRecord(Answer):
    """A version of a dataset that is made of stored completions; ``file`` is there once it has succeeded."""

    id: str
    created_at: int
    dataset: str
    where: str
    status: str
    error: str | None
    file: str | None
    provenance: Provenance | None
