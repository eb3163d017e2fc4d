"""Lists: their one shape, and the query parameters that they share.

``has_more`` always, ids at both ends, so that every client pages and none loops.
"""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Query

from zhub.database.pages import Page
from zhub.ids import parse_id

PageLimit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], Query(description="`desc`: the newest first.")]
Since = Annotated[
    int | None, Query(ge=0, le=253402300799, description="Only what was created at this Unix time or later.")
]
Search = Annotated[
    str | None, Query(min_length=1, max_length=200, description="A text in it; letters of both cases are equal.")
]
Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


def wanted_page(kind: str, after: str | None, limit: int, order: str = "desc") -> Page:
    """The page that a request asks for, of objects of this kind. Raises NotFoundError."""
    last: uuid.UUID | None = parse_id(kind, after) if after is not None else None
    return Page(limit, last, oldest_first=order == "asc")


def moment(seconds: int | None) -> datetime | None:
    """A Unix time as the database has it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def wanted_metadata(query: Mapping[str, str]) -> dict[str, str]:
    """What ``metadata[key]=value`` in the query asks for."""
    names = {name: name.removeprefix("metadata[").removesuffix("]") for name in query if name.startswith("metadata[")}
    return {key: query[name] for name, key in names.items()}


def page(items: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
