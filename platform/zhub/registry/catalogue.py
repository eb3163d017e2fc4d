"""The catalogue as a caller sees it: a search answered with versions, counts, and why nothing was found.

Functions take a Session and never commit.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.models import CatalogueEntry, VersionMetric
from zhub.registry import search, versions
from zhub.registry.search import Counts, Hit, Part, Sort
from zhub.registry.search_query import Term, parse
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller


@dataclass(frozen=True)
class Listed:
    """A version on a page: what it was found by, and its figures."""

    record: VersionRecord
    entry: CatalogueEntry
    metrics: Sequence[VersionMetric]


@dataclass(frozen=True)
class Page:
    """What a search found. ``next``: where the following page begins, None on the last one.

    ``counts``: of the whole search, where they were asked for. ``nothing``: where nothing was found, why.
    """

    listed: Sequence[Listed]
    next: str | None
    counts: Counts | None
    nothing: str | None


def search_catalogue(
    session: Session,
    caller: Caller,
    query: str,
    *,
    sort: Sort | None = None,
    after: str | None = None,
    limit: int,
    counted: bool = False,
) -> Page:
    """Search what the caller may see.

    Raises:
        SearchQueryError: the query cannot be read; it says where, and what would be right.
        InvalidRequestError: a sort or a cursor that does not go with the query.
    """
    written = parse(query)
    terms = search.without_suites(written)
    order = search.order_of(terms, sort)
    last = None if after is None else search.read_cursor(after, query, order)
    parts = search.own_parts(caller)
    hits = search.find(session, parts, terms, order, after=last, limit=limit + 1)
    shown = hits[:limit]
    has_more = len(hits) > limit
    return Page(
        _listed(session, shown),
        search.cursor(query, order, shown[-1]) if has_more else None,
        search.count(session, parts, terms) if counted else None,
        _why_nothing(session, parts, written) if not hits and after is None else None,
    )


def _listed(session: Session, hits: Sequence[Hit]) -> list[Listed]:
    ids = [hit.version_id for hit in hits]
    records = versions.by_id(session, ids)
    entries = {
        entry.version_id: entry
        for entry in session.scalars(select(CatalogueEntry).where(CatalogueEntry.version_id.in_(ids)))
    }
    metrics: dict[uuid.UUID, list[VersionMetric]] = {version_id: [] for version_id in ids}
    measured = select(VersionMetric).where(VersionMetric.version_id.in_(ids))
    for metric in session.scalars(measured.order_by(VersionMetric.suite, VersionMetric.metric)):
        metrics[metric.version_id].append(metric)
    return [Listed(records[version_id], entries[version_id], metrics[version_id]) for version_id in ids]


def _why_nothing(session: Session, parts: Sequence[Part], terms: Sequence[Term]) -> str:
    """Which terms find nothing even alone, in what the caller may see."""
    alone = [term.written for term in terms if not search.finds_something(session, parts, [term])]
    if not terms:
        return "There is nothing here yet."
    if not alone:
        return "Each term alone finds something; nothing has all of them."
    listed = ", ".join(f"'{written}'" for written in alone)
    return f"{listed} alone {'finds' if len(alone) == 1 else 'find'} nothing."
