"""The catalogue searched: which versions a caller may see, filtered, the best first, page by page, with counts.

A search reads ``CatalogueEntry`` and ``VersionMetric`` by an index that has the order it is asked in, of each part of
what the caller may see, and joins the parts. Functions take a Session and never commit.
"""

import base64
import hashlib
import json
import operator
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, and_, exists, func, not_, select, true, tuple_, union_all
from sqlalchemy.orm import Session, aliased

from zhub.errors import InvalidRequestError
from zhub.models import CatalogueEntry, Organization, Project, VersionMetric
from zhub.registry.search_query import Term, ranking_metric
from zhub.tenancy.keys import Caller

Sort = Literal["best", "newest", "tokens", "feedback"]
Facet = Literal["base", "adapter", "alias", "suite", "tag", "visibility"]
FACETS: tuple[Facet, ...] = get_args(Facet)
MAX_COUNTED = 1000  # matches that facets are counted over
MAX_FACET_VALUES = 20
RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

Entry = type[CatalogueEntry]
Part = Callable[[Any], ColumnElement[bool]]
"""A part of what the caller may see: the condition on an entry, or on a metric, that an index begins with."""


@dataclass(frozen=True)
class Order:
    """What comes first: by a column of the entry, or by a metric of a suite, the largest first, then the newest id."""

    sort: Sort
    metric: Term | None = None


@dataclass(frozen=True)
class Hit:
    """A version that was found, and what it was sorted by: a number, or a moment."""

    version_id: uuid.UUID
    key: float | datetime


@dataclass(frozen=True)
class Counts:
    """How many of the first MAX_COUNTED matches have each value of a facet; ``is_whole``: there are no more matches."""

    matches: int
    is_whole: bool
    facets: dict[Facet, list[tuple[str, int]]]


def order_of(terms: Sequence[Term], sort: Sort | None) -> Order:
    """The order that is asked for; by itself the best first where the search bounds a metric, else the newest.

    Raises:
        InvalidRequestError: ``best`` without a metric.
    """
    metric = ranking_metric(terms)
    if sort is None:
        return Order("newest") if metric is None else Order("best", metric)
    if sort != "best":
        return Order(sort)
    if metric is None:
        raise InvalidRequestError(
            "sort: the best by which metric? Bound one in the search, as q=suite:gsm8k accuracy>=0.", param="sort"
        )
    return Order("best", metric)


def own_parts(caller: Caller) -> list[Part]:
    """What the caller sees of its own organisation: what is its project's, and what is everybody's there."""
    return [lambda of: of.audience == caller.project_id, lambda of: of.audience == caller.org_id]


def find(
    session: Session, parts: Sequence[Part], terms: Sequence[Term], order: Order, *, after: Hit | None, limit: int
) -> list[Hit]:
    """The first ``limit`` matches in these parts, in order, that come after ``after``."""
    ranked = [_ranked(part, terms, order, after).limit(limit).subquery() for part in parts]
    rows = union_all(*(select(one.c.key, one.c.id) for one in ranked)).subquery()
    statement = select(rows.c.key, rows.c.id).order_by(rows.c.key.desc(), rows.c.id.desc()).limit(limit)
    return [Hit(version_id, key) for key, version_id in session.execute(statement)]


def count(session: Session, parts: Sequence[Part], terms: Sequence[Term]) -> Counts:
    """The first matches in these parts, counted by facet."""
    matched = []
    for part in parts:
        entry = aliased(CatalogueEntry)
        of_part = select(entry.version_id, entry.terms).where(part(entry), *_conditions(entry, terms))
        matched.append(of_part.limit(MAX_COUNTED + 1).subquery())
    rows = union_all(*(select(one.c.version_id, one.c.terms) for one in matched)).limit(MAX_COUNTED + 1).cte("rows")
    matches = session.scalar(select(func.count()).select_from(rows)) or 0
    term = func.unnest(rows.c.terms).table_valued("name").lateral("term")
    counted = select(term.c.name, func.count()).select_from(rows).join(term, true()).group_by(term.c.name)
    values: dict[str, list[tuple[str, int]]] = {facet: [] for facet in FACETS}
    for name, number in session.execute(counted):
        facet, _, value = name.partition(":")
        if facet in values:
            values[facet].append((value, number))
    return Counts(
        min(matches, MAX_COUNTED),
        matches <= MAX_COUNTED,
        {facet: sorted(values[facet], key=lambda pair: (-pair[1], pair[0]))[:MAX_FACET_VALUES] for facet in FACETS},
    )


def finds_something(session: Session, parts: Sequence[Part], terms: Sequence[Term]) -> bool:
    """Whether anything in these parts matches."""
    for part in parts:
        entry = aliased(CatalogueEntry)
        one = select(entry.version_id).where(part(entry), *_conditions(entry, terms)).limit(1)
        if session.scalar(one) is not None:
            return True
    return False


def cursor(query: str, order: Order, last: Hit) -> str:
    """Where the next page begins, as clients send it back. It holds what was sorted by, so rows that come or change
    meanwhile move nothing that was not yet shown."""
    key = last.key.isoformat() if isinstance(last.key, datetime) else repr(float(last.key))
    content = json.dumps([_fingerprint(query, order), key, last.version_id.hex])
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def read_cursor(text: str, query: str, order: Order) -> Hit:
    """Raises InvalidRequestError for what is no cursor of this search in this order."""
    try:
        content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        fingerprint, key, hexadecimal = json.loads(content)
        last = Hit(uuid.UUID(hex=hexadecimal), datetime.fromisoformat(key) if order.sort == "newest" else float(key))
    except (ValueError, TypeError, AttributeError) as exc:
        raise InvalidRequestError("after: give 'next' of the page before, unchanged.", param="after") from exc
    if fingerprint != _fingerprint(query, order):
        raise InvalidRequestError(
            "after: this is where another search, or another order, goes on. Begin with its first page.", param="after"
        )
    return last


def _fingerprint(query: str, order: Order) -> str:
    return hashlib.sha256(json.dumps([query, order.sort]).encode()).hexdigest()[:16]


def _ranked(part: Part, terms: Sequence[Term], order: Order, after: Hit | None) -> Select[Any]:
    """Key and version of the matches in one part, in order."""
    entry = aliased(CatalogueEntry)
    key: Any
    if order.metric is not None:
        metric, of = aliased(VersionMetric), order.metric
        key = metric.value
        conditions = [term for term in terms if not _bounds_the_same(term, of)]
        bounds = [_holds(metric.value, term) for term in terms if _bounds_the_same(term, of)]
        statement = (
            select(key.label("key"), metric.version_id.label("id"))
            .join(entry, entry.version_id == metric.version_id)
            .where(part(metric), metric.suite == of.suite, metric.metric == of.name, *bounds)
            .where(*_conditions(entry, conditions))
        )
        version_id = metric.version_id
    else:
        columns = {"newest": entry.created_at, "tokens": entry.used_tokens, "feedback": entry.feedback_mean}
        key, version_id = columns[order.sort], entry.version_id
        statement = select(key.label("key"), version_id.label("id")).where(part(entry), *_conditions(entry, terms))
    if after is not None:
        statement = statement.where(tuple_(key, version_id) < (after.key, after.version_id))
    return statement.order_by(key.desc(), version_id.desc())


def _bounds_the_same(term: Term, of: Term) -> bool:
    return term.is_metric and not term.negated and (term.name, term.suite) == (of.name, of.suite)


def _conditions(entry: Entry, terms: Sequence[Term]) -> list[ColumnElement[bool]]:
    conditions = [_condition(entry, term) for term in terms]
    if not any(term.name == "archived" for term in terms):
        conditions.append(entry.archived.is_(False))
    return conditions


def _condition(entry: Entry, term: Term) -> ColumnElement[bool]:
    clause = _clause(entry, term)
    return not_(clause) if term.negated else clause


def _clause(entry: Entry, term: Term) -> ColumnElement[bool]:
    if term.is_metric:
        metric = aliased(VersionMetric)
        return exists().where(
            metric.version_id == entry.version_id,
            metric.suite == term.suite,
            metric.metric == term.name,
            _holds(metric.value, term),
        )
    match term.name:
        case None:
            return _says(entry, term)
        case "owner":
            return entry.org_id.in_(select(Organization.id).where(Organization.name == term.value))
        case "project":
            return entry.project_id.in_(select(Project.id).where(Project.name == term.value))
        case "archived":
            wanted = {"yes": [True], "no": [False], "any": [True, False]}[str(term.value)]
            return entry.archived.in_(wanted)
        case "created" | "updated":
            return _holds(entry.created_at if term.name == "created" else entry.updated_at, term)
        case "tokens":
            return _holds(entry.used_tokens, term)
        case "feedback":
            return and_(entry.feedback_count > 0, _holds(entry.feedback_mean, term))
        case _:
            return entry.terms.contains([f"{term.name}:{term.value}"])


def _says(entry: Entry, term: Term) -> ColumnElement[bool]:
    """Words in a row, or a word, of which the last part may go on: ``sort`` finds ``sorting``."""
    text = str(term.value)
    if term.is_phrase:
        said = func.phraseto_tsquery("simple", text)
    else:
        parts = "".join(character if character.isalnum() or character == "_" else " " for character in text).split()
        said = func.to_tsquery("simple", " & ".join(f"{part}:*" for part in parts))
    return entry.document.op("@@", is_comparison=True)(said)


def _holds(column: Any, term: Term) -> ColumnElement[bool]:
    value: Any = term.value
    if isinstance(value, timedelta):
        value = func.now() - value
    compared: ColumnElement[bool] = RELATIONS[term.relation](column, value)
    return compared


def without_suites(terms: Sequence[Term]) -> list[Term]:
    """The terms without each ``suite:`` whose metric is bounded after it, which says the same and more."""
    bounded = {term.suite for term in terms if term.is_metric and not term.negated}
    return [term for term in terms if not (term.name == "suite" and not term.negated and term.value in bounded)]
