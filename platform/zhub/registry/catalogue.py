"""The catalogue as a caller sees it: a search answered with versions, counts, and why nothing was found.

It has two halves: what the caller's organisation has, and what others share with it. A search finds the ids of both
by conditions of ours, and what is shown of them is read by the tenant's rights and by a guest's. Functions take a
Session and never commit.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.database.sessions import as_guest, as_search
from zhub.models import CatalogueEntry, ExpertGrant, Organization, Project, VersionMetric
from zhub.registry import search, versions
from zhub.registry.search import FACETS, MAX_COUNTED, MAX_FACET_VALUES, Counts, Hit, Order, Scope, Sort
from zhub.registry.search_query import Term, parse
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

MAX_GRANTED = 1000  # that are searched
MAX_NAMED = 1000  # projects of one name
PRIVATE_BASE = "private:base"  # the term of versions that nobody else can use


@dataclass(frozen=True)
class Listed:
    """A version on a page: what it was found by, and its figures. ``owner``: the name of its organisation."""

    record: VersionRecord
    owner: str
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


@dataclass(frozen=True)
class Half:
    """What is read by the same rights: those of the caller's organisation, or a guest's."""

    is_guest: bool
    scope: Scope


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
    halves = halves_of(session, caller, written)
    found = find(session, halves, terms, order, after=last, limit=limit + 1)
    has_more = len(found) > limit
    shown = found[:limit]
    return Page(
        read(session, caller, shown),
        search.cursor(query, order, shown[-1][0]) if has_more else None,
        _count(session, halves, terms) if counted else None,
        _why_nothing(session, halves, written) if not found and after is None else None,
    )


def find(
    session: Session,
    halves: Sequence[Half],
    terms: Sequence[Term],
    order: Order,
    *,
    after: Hit | None = None,
    limit: int,
) -> list[tuple[Hit, Half]]:
    """The first ``limit`` matches in order, each with the half that it is of."""
    found: list[tuple[Hit, Half]] = []
    with as_search(session):
        for half in halves:
            found += [(hit, half) for hit in search.find(session, half.scope, terms, order, after=after, limit=limit)]
    return sorted(found, key=lambda one: (one[0].key, one[0].version_id), reverse=True)[:limit]


def read(session: Session, caller: Caller, found: Sequence[tuple[Hit, Half]]) -> list[Listed]:
    """These matches with all that is shown of them, in their order. One that is not to be seen any more is left out."""
    listed: dict[uuid.UUID, Listed] = {}
    for is_guest in (False, True):
        ids = [hit.version_id for hit, half in found if half.is_guest is is_guest]
        if ids:
            with _rights(session, caller, is_guest):
                listed |= {one.record.version.id: one for one in _read(session, ids, is_guest)}
    return [listed[hit.version_id] for hit, _ in found if hit.version_id in listed]


def halves_of(session: Session, caller: Caller, terms: Sequence[Term] = ()) -> list[Half]:
    """What the caller may see, to be searched for ``terms``."""
    own = Scope(search.own_parts(caller), _named(session, terms))
    with as_guest(session, caller.project_id):
        rows = session.execute(select(ExpertGrant.expert_id, ExpertGrant.version_id).limit(MAX_GRANTED))
        granted = [(expert_id, version_id) for expert_id, version_id in rows]
        shared = Scope(search.shared_parts(caller, granted), _named(session, terms), without=PRIVATE_BASE)
    return [Half(False, own), Half(True, shared)]


def _named(session: Session, terms: Sequence[Term]) -> dict[int, list[uuid.UUID]]:
    """The organisations and projects that terms name, of those that the session sees by its rights of the moment."""
    named: dict[int, list[uuid.UUID]] = {}
    for term in terms:
        if term.name in ("owner", "project"):
            of = Organization if term.name == "owner" else Project
            named[term.position] = list(session.scalars(select(of.id).where(of.name == term.value).limit(MAX_NAMED)))
    return named


@contextmanager
def _rights(session: Session, caller: Caller, is_guest: bool) -> Iterator[None]:
    if is_guest:
        with as_guest(session, caller.project_id):
            yield
    else:
        yield


def _read(session: Session, ids: Sequence[uuid.UUID], is_guest: bool) -> list[Listed]:
    records = versions.by_id(session, ids)
    owners = {record.project.org_id for record in records.values()}
    named = select(Organization.id, Organization.name).where(Organization.id.in_(owners))
    names = {org_id: name for org_id, name in session.execute(named)}
    entries = select(CatalogueEntry).where(CatalogueEntry.version_id.in_(ids))
    metrics: dict[uuid.UUID, list[VersionMetric]] = {version_id: [] for version_id in ids}
    measured = select(VersionMetric).where(VersionMetric.version_id.in_(ids))
    for metric in session.scalars(measured.order_by(VersionMetric.suite, VersionMetric.metric)):
        metrics[metric.version_id].append(metric)
    listed = []
    for entry in session.scalars(entries):
        if (record := records.get(entry.version_id)) is None:
            continue
        owner = names[record.project.org_id]
        shown = replace(record, organization=owner) if is_guest else record
        listed.append(Listed(shown, owner, entry, metrics[entry.version_id]))
    return listed


def _count(session: Session, halves: Sequence[Half], terms: Sequence[Term]) -> Counts:
    with as_search(session):
        counted = [search.count(session, half.scope, terms) for half in halves]
    matches = sum(counts.matches for counts in counted)
    facets = {}
    for facet in FACETS:
        values: dict[str, int] = {}
        for counts in counted:
            for value, number in counts.facets[facet]:
                values[value] = values.get(value, 0) + number
        facets[facet] = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_FACET_VALUES]
    is_whole = all(counts.is_whole for counts in counted)
    return Counts(matches if is_whole else max(matches, MAX_COUNTED), is_whole, facets)


def _why_nothing(session: Session, halves: Sequence[Half], terms: Sequence[Term]) -> str:
    """Which terms find nothing even alone, in what the caller may see."""
    if not terms:
        return "There is nothing here yet."
    with as_search(session):
        alone = [
            term.written
            for term in terms
            if not any(search.finds_something(session, half.scope, term) for half in halves)
        ]
    if not alone:
        return "Each term alone finds something; nothing has all of them."
    listed = ", ".join(f"'{written}'" for written in alone)
    return f"{listed} alone {'finds' if len(alone) == 1 else 'find'} nothing."
