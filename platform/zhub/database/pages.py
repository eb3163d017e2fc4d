"""Lists that are read in pages by their ids, which sort by creation: newest or oldest first, after a cursor."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, Select, and_
from sqlalchemy.orm import InstrumentedAttribute, Session

from zhub.ids import earliest_id

MAX_SEARCHED = 10_000
CLOCK_ERROR = timedelta(days=1)  # of a process that makes ids

Row = TypeVar("Row")


@dataclass(frozen=True)
class Page:
    """Which rows of a list: at most ``limit`` of those that follow the row with the id ``after``."""

    limit: int
    after: uuid.UUID | None = None
    oldest_first: bool = False


def read_page(
    session: Session,
    rows: Select[Row],
    id_: InstrumentedAttribute[uuid.UUID],
    page: Page,
    *,
    search: ColumnElement[bool] | None = None,
) -> tuple[list[Row], bool]:
    """The rows of a page, and whether more follow.

    ``search`` is a condition that no index helps with. It is tried on the next ``MAX_SEARCHED`` of the ``rows`` and on
    no others, so that a search through a long history ends.
    """
    order = id_.asc() if page.oldest_first else id_.desc()
    if page.after is not None:
        rows = rows.where(id_ > page.after if page.oldest_first else id_ < page.after)
    if search is not None:
        window = rows.with_only_columns(id_).order_by(order).limit(MAX_SEARCHED).subquery()
        rows = rows.join(window, window.c.id == id_).where(search)
    listed = list(session.scalars(rows.order_by(order).limit(page.limit + 1)))
    return listed[: page.limit], len(listed) > page.limit


def created_since(
    created_at: InstrumentedAttribute[datetime], id_: InstrumentedAttribute[uuid.UUID], since: datetime
) -> ColumnElement[bool]:
    """The condition that a row was created at ``since`` or later; by its id too, at which the reading ends."""
    return and_(created_at >= since, id_ >= earliest_id(since - CLOCK_ERROR))
