"""The catalogue: experts' versions searched, and the cards of experts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zhub.client.transport import Http, path_part
from zhub.client.wire.catalogue import CardRecord, CardRevisionRecord, NeighboursRecord, SearchResult

MAX_PAGE = 100


class Catalogue:
    """What the key may see."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def search(
        self, query: str = "", *, sort: str | None = None, limit: int = 20, facets: bool = False
    ) -> SearchResult:
        """The first ``limit`` versions that match ``query``, whose terms docs/guides/catalogue.md lists.

        ``sort``: ``best`` (by the first metric that the query bounds), ``newest``, ``tokens`` or ``feedback``.
        """
        asked: dict[str, Any] = {"q": query, "sort": sort, "facets": True if facets else None}
        first = result = SearchResult.model_validate(
            self._http.get("/v1/catalogue", **asked, limit=min(limit, MAX_PAGE))
        )
        data = list(first.data)
        while result.next is not None and len(data) < limit:
            more = {"q": query, "sort": sort, "after": result.next, "limit": min(limit - len(data), MAX_PAGE)}
            result = SearchResult.model_validate(self._http.get("/v1/catalogue", **more))
            data += result.data
        return first.model_copy(update={"data": data, "next": result.next})

    def card(self, name: str) -> CardRecord:
        """The card of an expert, or of a version of it."""
        return CardRecord.model_validate(self._http.get(_card(name)))

    def write_card(
        self,
        expert: str,
        *,
        text: str | None = None,
        links: Sequence[Mapping[str, str]] | None = None,
        expected: int | None = None,
    ) -> CardRecord:
        """Write a revision of an expert's card; with ``expected``, only if that is its revision now."""
        body = {"text": text, "links": None if links is None else list(links), "expected": expected}
        sent = {name: value for name, value in body.items() if value is not None}
        return CardRecord.model_validate(self._http.put(_card(expert), sent))

    def neighbours(self, name: str) -> NeighboursRecord:
        """What changes a version's basis alike, and what was trained on its data, of all that the key may see."""
        return NeighboursRecord.model_validate(self._http.get(f"/v1/experts/{path_part(name)}/neighbours"))

    def card_revisions(self, expert: str) -> Iterator[CardRevisionRecord]:
        """What was written on an expert's card, newest first."""
        entries = self._http.pages(f"{_card(expert)}/revisions", limit=MAX_PAGE)
        return (CardRevisionRecord.model_validate(entry) for entry in entries)


def _card(name: str) -> str:
    return f"/v1/experts/{path_part(name)}/card"
