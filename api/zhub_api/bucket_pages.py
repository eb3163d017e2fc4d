"""Buckets of time, and their pages, as the dialect's reports of usage and costs have them."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query

from zhub.errors import InvalidRequestError
from zhub.ids import parse_id

LATEST = 253402300799
IDS = {"project_id": "project", "api_key_id": "API key"}
"""What a report may be divided by that clients know by an id, and whose id it is."""

Moment = Annotated[int, Query(ge=0, le=LATEST, description="A Unix time.")]
Names = Annotated[list[str], Query(max_length=100)]


def in_brackets(name: str) -> Any:
    """The form in which the dialect's client sends a list."""
    return Query(alias=f"{name}[]", max_length=100)


def parse_ids(kind: str, names: Sequence[str]) -> list[uuid.UUID]:
    return [parse_id(kind, name) for name in names]


def moment_of(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(seconds, LATEST), UTC)


@dataclass(frozen=True)
class Span:
    """A page of buckets of ``width_s`` from ``began`` on, and when what was asked for ends; Unix times."""

    began: int
    page_end: int
    end: int
    width_s: int

    @property
    def until(self) -> int:
        return min(self.page_end, self.end)

    def answer(self, results: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """The page, with the results of each bucket by its start."""
        return {
            "object": "page",
            "data": [
                {
                    "object": "bucket",
                    "start_time": start,
                    "end_time": start + self.width_s,
                    "results": list(results.get(start, [])),
                }
                for start in range(self.began, self.until, self.width_s)
            ],
            "has_more": self.page_end < self.end,
            "next_page": f"page_{self.page_end}" if self.page_end < self.end else None,
        }


def span_of(began: int, end_time: int | None, page: str | None, *, width_s: int, buckets: int) -> Span:
    """The page of a report that begins at ``began`` and ends at ``end_time``, or now; ``buckets`` on a page.

    Raises:
        InvalidRequestError: the page is not one of this report.
    """
    if page is not None:
        began = _next_page(page, began)
    end = min(end_time, LATEST) if end_time is not None else int(datetime.now(UTC).timestamp()) + 1
    return Span(began, began + width_s * buckets, end, width_s)


def _next_page(page: str, began: int) -> int:
    prefix, _, start = page.partition("_")
    if prefix != "page" or not start.isascii() or not start.isdecimal() or not began <= int(start) <= LATEST:
        message = "'page' must be the 'next_page' of an answer with the same 'start_time'."
        raise InvalidRequestError(message, param="page")
    return int(start)
