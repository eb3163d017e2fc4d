"""Answers of the catalogue: what a search found, and the cards of experts."""

from typing import Any

from zhub.client.wire.answer import Answer
from zhub.client.wire.experts import FeedbackSummary


class MetricRecord(Answer):
    """A figure of a version on a suite, with its 95 % interval where it has one."""

    suite: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int | None


class CatalogueEntry(Answer):
    """A version that a search found."""

    id: str
    owner: str
    created_at: int
    updated_at: int
    base_model: str
    adapter: str
    description: str | None
    tags: dict[str, str]
    aliases: list[str]
    visibility: str
    archived: bool
    metrics: list[MetricRecord]
    used_tokens: int
    feedback: FeedbackSummary


class FacetValue(Answer):
    value: str
    count: int


class Facets(Answer):
    """How many of the first ``matches`` have each value; ``is_whole``: there are no more."""

    matches: int
    is_whole: bool
    base: list[FacetValue]
    adapter: list[FacetValue]
    alias: list[FacetValue]
    suite: list[FacetValue]
    tag: list[FacetValue]
    visibility: list[FacetValue]


class SearchResult(Answer):
    """Versions that were found, the first page of facets, and why nothing was found where nothing was."""

    data: list[CatalogueEntry]
    next: str | None
    facets: Facets | None
    nothing: str | None


class CardRecord(Answer):
    """The card of an expert: facts, figures, and what people wrote, at ``revision``."""

    id: str
    expert: str
    facts: dict[str, Any] | None
    metrics: list[MetricRecord]
    revision: int
    text: str
    links: list[dict[str, str]]
    by: str | None
    written_at: int | None
    permission: str
    markdown: str


class CardRevisionRecord(Answer):
    """What somebody wrote on a card."""

    revision: int
    created_at: int
    by: str
    text: str
    links: list[dict[str, str]]


class NeighbourRecord(Answer):
    """A version near another; ``cosine`` is of the angle between what both change, where that was compared."""

    model: str
    owner: str
    visibility: str
    cosine: float | None = None


class NeighboursRecord(Answer):
    """What is near a version."""

    model: str
    alike: list[NeighbourRecord]
    same_dataset: list[NeighbourRecord]
