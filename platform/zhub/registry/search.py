"""The catalogue searched: which versions a caller may see, filtered, the best first, page by page, with counts.

A search reads ``CatalogueEntry`` and ``VersionMetric`` by an index that has the order it is asked in, of each part of
what the caller may see, and joins the parts. Functions take a Session and never commit.
"""

import base64
import hashlib
import json
import operator
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, get_args

from sqlalchemy import CTE, ColumnElement, Select, and_, exists, func, not_, select, true, tuple_, union_all
from sqlalchemy.orm import Session, aliased

from zhub.errors import InvalidRequestError
from zhub.models import CatalogueEntry, VersionMetric
from zhub.registry.search_query import Term, ranking_metric
from zhub.tenancy.keys import Caller

Sort = Literal["best", "newest", "tokens", "feedback"]
Facet = Literal["base", "adapter", "alias", "suite", "tag", "visibility"]
FACETS: tuple[Facet, ...] = get_args(Facet)
MAX_COUNTED = 1000  # matches that facets are counted over
MAX_FACET_VALUES = 20
WINDOW = 2000  # rows of an index in which what is common is looked for
COMMON = 20  # matches in a window
UNINDEXED = ("owner", "project", "archived", "created", "updated", "tokens", "feedback")
RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

Entry = type[CatalogueEntry]
Part = Callable[[Any], ColumnElement[bool]]
"""A part of what the caller may see: the condition on an entry, or on a metric, that an index begins with."""


KEYS: dict[Sort, Callable[[Any], Any]] = {
    "newest": lambda entry: entry.created_at,
    "tokens": lambda entry: entry.used_tokens,
    "feedback": lambda entry: entry.feedback_mean,
}


@dataclass(frozen=True)
class Scope:
    """What a search looks through: row-level security does not say it, so this has to.

    ``named``: which organisations or projects the term at a position names, of those that the caller may know.
    ``without``: no entry with this term.
    """

    parts: Sequence[Part]
    named: Mapping[int, Sequence[uuid.UUID]]
    without: str | None = None


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


def shared_parts(caller: Caller, grants: Sequence[tuple[uuid.UUID, uuid.UUID | None]]) -> list[Part]:
    """What the caller sees of others: what everybody finds, and what it has grants of, of an expert or one version."""
    parts: list[Part] = [lambda of: of.listed.is_(True) & (of.org_id != caller.org_id)]
    whole = [expert_id for expert_id, version_id in grants if version_id is None]
    single = [version_id for _, version_id in grants if version_id is not None]
    if whole:
        parts.append(lambda of: of.expert_id.in_(whole) & of.listed.is_(False) & of.audience.is_not(None))
    if single:
        parts.append(
            lambda of: (
                of.version_id.in_(single) & of.expert_id.not_in(whole) & of.listed.is_(False) & of.audience.is_not(None)
            )
        )
    return parts


def find(
    session: Session, scope: Scope, terms: Sequence[Term], order: Order, *, after: Hit | None, limit: int
) -> list[Hit]:
    """The first ``limit`` matches in the scope, in order, that come after ``after``.

    What is common is found among the first rows of an index in that order; what is rare by the index of terms and
    words, and sorted. PostgreSQL does not know which it is: of a word it has never seen it expects one row in 200.
    """
    if not any(_is_indexed(term) for term in terms):
        return _first(session, scope, partial(_in_order, scope, terms, order, after), limit)
    hits = _first(session, scope, partial(_in_window, scope, terms, order, after), limit)
    if len(hits) == limit:
        return hits
    return _first(session, scope, partial(_of_few, scope, terms, order, after), limit)


def count(session: Session, scope: Scope, terms: Sequence[Term]) -> Counts:
    """The first matches in the scope, counted by facet."""
    is_rare = any(_is_indexed(term) for term in terms) and not _is_common(session, scope, terms)
    matched = []
    for part in scope.parts:
        entry = aliased(CatalogueEntry)
        of_part = select(entry.version_id, entry.terms).where(part(entry), *_conditions(entry, scope, terms))
        rows = _materialized(of_part) if is_rare else of_part.limit(MAX_COUNTED + 1).subquery()
        matched.append(select(rows.c.version_id, rows.c.terms).limit(MAX_COUNTED + 1).subquery())
    counted = union_all(*(select(one.c.version_id, one.c.terms) for one in matched)).limit(MAX_COUNTED + 1).cte("rows")
    matches = session.scalar(select(func.count()).select_from(counted)) or 0
    term = func.unnest(counted.c.terms).table_valued("name").lateral("term")
    by_term = select(term.c.name, func.count()).select_from(counted).join(term, true()).group_by(term.c.name)
    values: dict[str, list[tuple[str, int]]] = {facet: [] for facet in FACETS}
    for name, number in session.execute(by_term):
        facet, _, value = name.partition(":")
        if facet in values:
            values[facet].append((value, number))
    return Counts(
        min(matches, MAX_COUNTED),
        matches <= MAX_COUNTED,
        {facet: sorted(values[facet], key=lambda pair: (-pair[1], pair[0]))[:MAX_FACET_VALUES] for facet in FACETS},
    )


def finds_something(session: Session, scope: Scope, term: Term) -> bool:
    """Whether the term alone finds anything in the scope."""
    metric = ranking_metric([term])
    order = Order("newest") if metric is None else Order("best", metric)
    return bool(find(session, scope, [term], order, after=None, limit=1))


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


def _first(session: Session, scope: Scope, ranked: Callable[[Part], Select[Any]], limit: int) -> list[Hit]:
    """The first matches of all parts, of each of which ``ranked`` has key and version, in order."""
    of_parts = [ranked(part).limit(limit).subquery() for part in scope.parts]
    rows = union_all(*(select(one.c.key, one.c.id) for one in of_parts)).subquery()
    statement = select(rows.c.key, rows.c.id).order_by(rows.c.key.desc(), rows.c.id.desc()).limit(limit)
    return [Hit(version_id, key) for key, version_id in session.execute(statement)]


def _in_order(scope: Scope, terms: Sequence[Term], order: Order, after: Hit | None, part: Part) -> Select[Any]:
    """The matches in one part, by the index that has the order."""
    source, key, conditions = _source(part, terms, order)
    entry = aliased(CatalogueEntry) if order.metric is not None else source
    statement = select(key.label("key"), source.version_id.label("id"))
    if order.metric is not None:
        statement = statement.join(entry, entry.version_id == source.version_id)
    statement = statement.where(*conditions, *_conditions(entry, scope, _unbounded(terms, order)))
    return _after(statement, key, source.version_id, after)


def _in_window(scope: Scope, terms: Sequence[Term], order: Order, after: Hit | None, part: Part) -> Select[Any]:
    """The matches among the first WINDOW rows of one part."""
    source, key, conditions = _source(part, terms, order)
    rows = select(key.label("key"), source.version_id.label("id")).where(*conditions)
    window = _after(rows, key, source.version_id, after).limit(WINDOW).subquery()
    entry = aliased(CatalogueEntry)
    of_row = select(entry.version_id).where(entry.version_id == window.c.id)
    # The limit keeps the planner from joining the window with all that an index of terms has.
    matching = of_row.where(*_conditions(entry, scope, _unbounded(terms, order))).limit(1).lateral()
    statement = select(window.c.key, window.c.id).join(matching, true())
    return statement.order_by(window.c.key.desc(), window.c.id.desc())


def _of_few(scope: Scope, terms: Sequence[Term], order: Order, after: Hit | None, part: Part) -> Select[Any]:
    """The matches in one part, all of them, by the index of terms and words; then sorted."""
    entry = aliased(CatalogueEntry)
    columns = (entry.version_id, *(key(entry) for key in KEYS.values()))
    few = _materialized(select(*columns).where(part(entry), *_conditions(entry, scope, _unbounded(terms, order))))
    if order.metric is None:
        key = few.c[KEYS[order.sort](CatalogueEntry).key]
        return _after(select(key.label("key"), few.c.version_id.label("id")), key, few.c.version_id, after)
    source, value, conditions = _source(lambda of: true(), terms, order)
    statement = select(value.label("key"), source.version_id.label("id"))
    statement = statement.join(few, few.c.version_id == source.version_id).where(*conditions)
    return _after(statement, value, source.version_id, after)


def _materialized(statement: Select[*tuple[Any, ...]]) -> CTE:
    return statement.cte().prefix_with("MATERIALIZED")


def _source(part: Part, terms: Sequence[Term], order: Order) -> tuple[Any, Any, list[ColumnElement[bool]]]:
    """What has the order: entries or metrics, the column of the key, and the conditions that its index begins with."""
    if order.metric is None:
        entry = aliased(CatalogueEntry)
        return entry, KEYS[order.sort](entry), [part(entry)]
    metric, of = aliased(VersionMetric), order.metric
    bounds = [_holds(metric.value, term) for term in terms if _bounds_the_same(term, of)]
    return metric, metric.value, [part(metric), metric.suite == of.suite, metric.metric == of.name, *bounds]


def _after(statement: Select[Any], key: Any, version_id: Any, after: Hit | None) -> Select[Any]:
    if after is not None:
        statement = statement.where(tuple_(key, version_id) < (after.key, after.version_id))
    return statement.order_by(key.desc(), version_id.desc())


def _unbounded(terms: Sequence[Term], order: Order) -> list[Term]:
    """The terms that do not bound the metric that the order is by."""
    return [term for term in terms if order.metric is None or not _bounds_the_same(term, order.metric)]


def _is_indexed(term: Term) -> bool:
    """It finds entries by the index of terms, or of words."""
    return not term.negated and not term.is_metric and term.name not in UNINDEXED


def _is_common(session: Session, scope: Scope, terms: Sequence[Term]) -> bool:
    window = partial(_in_window, scope, terms, Order("newest"), None)
    return len(_first(session, scope, window, COMMON)) == COMMON


def _bounds_the_same(term: Term, of: Term) -> bool:
    return term.is_metric and not term.negated and (term.name, term.suite) == (of.name, of.suite)


def _conditions(entry: Entry, scope: Scope, terms: Sequence[Term]) -> list[ColumnElement[bool]]:
    conditions = [_condition(entry, scope, term) for term in terms]
    if scope.without is not None:
        conditions.append(not_(entry.terms.contains([scope.without])))
    if not any(term.name == "archived" for term in terms):
        conditions.append(entry.archived.is_(False))
    return conditions


def _condition(entry: Entry, scope: Scope, term: Term) -> ColumnElement[bool]:
    clause = _clause(entry, scope, term)
    return not_(clause) if term.negated else clause


def _clause(entry: Entry, scope: Scope, term: Term) -> ColumnElement[bool]:
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
            return entry.org_id.in_(scope.named[term.position])
        case "project":
            return entry.project_id.in_(scope.named[term.position])
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
