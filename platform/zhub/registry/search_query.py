"""What somebody searches the catalogue for, in words that a person writes.

``sorting base:tiny -tag:stage=trial suite:gsm8k accuracy>=0.7 updated>2026-01-01``: terms are separated by blanks, all
of them hold, and ``-`` before one turns it round. A value with blanks stands in double quotes. docs/guides/catalogue.md
has the table of them. It is read in one pass, and imports no database: the command line reads it too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from zhub.errors import SearchQueryError
from zhub.suggestions import did_you_mean

MAX_CHARACTERS = 1000
MAX_TERMS = 20
HELD_OUT = "test"
"""The suite that a metric is of where no ``suite:`` stands before it: the rows held out from the training."""
NAMED = ("owner", "project", "base", "tag", "alias", "adapter", "suite", "dataset", "visibility", "archived")
"""Written ``name:value``."""
MOMENTS = ("created", "updated")
AMOUNTS = ("tokens", "feedback")
METRICS = ("accuracy", "base_accuracy", "gain", "pass_at_k", "parse_failures")
"""Of one suite: mean reward, that of the base on the same rows, how much more the one is than the other, …"""
CHOICES = {
    "visibility": ("private", "organization", "granted", "public"),
    "archived": ("yes", "no", "any"),
}
TERM = re.compile(
    r'(?P<minus>-?)(?:(?P<name>[A-Za-z_]+)(?P<relation>:|<=|>=|<|>|=))?(?P<value>"[^"]*"|[^\s"]+)(?=\s|$)'
)
SPAN = re.compile(r"(\d{1,5})([hdw])")
SPANS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class Term:
    """One thing that has to hold.

    ``name`` is None for a word (or words in a row) of the text, else what is compared with ``value``: a text, a number,
    or a moment, which may be a span before now. ``suite`` is that of a metric. ``position`` counts characters from 0.
    """

    name: str | None
    relation: str
    value: str | float | datetime | timedelta
    written: str
    position: int
    negated: bool = False
    suite: str | None = None
    is_phrase: bool = False

    @property
    def is_metric(self) -> bool:
        return self.name in METRICS


def parse(query: str) -> list[Term]:
    """The terms of a search; without any, everything is meant.

    Raises:
        SearchQueryError: with the place of what cannot be read, and what would be right there.
    """
    if len(query) > MAX_CHARACTERS:
        raise SearchQueryError(query, MAX_CHARACTERS, f"a search has at most {MAX_CHARACTERS:,} characters")
    terms: list[Term] = []
    suite = HELD_OUT
    position = _after_blanks(query, 0)
    while position < len(query):
        if len(terms) == MAX_TERMS:
            raise SearchQueryError(query, position, f"a search has at most {MAX_TERMS} terms")
        match = TERM.match(query, position)
        if match is None:
            _refuse_unreadable(query, position)
        term = _term(query, match, suite)
        if term.name == "suite" and not term.negated:
            suite = str(term.value)
        terms.append(term)
        position = _after_blanks(query, match.end())
    return terms


def ranking_metric(terms: Sequence[Term]) -> Term | None:
    """The metric that the best come first by: the first that the search has a bound of."""
    return next((term for term in terms if term.is_metric and not term.negated), None)


def _after_blanks(query: str, position: int) -> int:
    while position < len(query) and query[position].isspace():
        position += 1
    return position


def _refuse_unreadable(query: str, position: int) -> NoReturn:
    quote = query.find('"', position)
    if quote >= 0 and query.find('"', quote + 1) < 0:
        raise SearchQueryError(query, quote, "this quotation mark is never closed; write it twice around the words")
    at = quote if quote >= 0 else position
    raise SearchQueryError(query, at, 'a blank belongs before and after words in quotation marks, as in base:"a b" c')


def _term(query: str, match: re.Match[str], suite: str) -> Term:
    position, negated = match.start(), bool(match["minus"])
    is_phrase = match["value"].startswith('"')
    value = match["value"].strip('"') if is_phrase else match["value"]
    at = match.start("value")
    if not value.strip():
        raise SearchQueryError(query, at, "there is nothing in the quotation marks")
    if match["name"] is None:
        if not any(character.isalnum() for character in value):
            raise SearchQueryError(query, at, "a word to search for has a letter or a digit")
        return Term(None, ":", value, match[0], position, negated, is_phrase=is_phrase)
    name, relation = match["name"].lower(), match["relation"]
    _check_relation(query, match, name)
    read: str | float | datetime | timedelta = value
    if name in MOMENTS:
        read = _moment(query, at, name, value)
    elif name in AMOUNTS or name in METRICS:
        read = _number(query, at, name, value)
    elif name in CHOICES and value not in CHOICES[name]:
        near = did_you_mean(value, CHOICES[name])
        raise SearchQueryError(query, at, f"{name} is one of {', '.join(CHOICES[name])}.{near}".rstrip("."))
    return Term(name, relation, read, match[0], position, negated, suite=suite if name in METRICS else None)


def _check_relation(query: str, match: re.Match[str], name: str) -> None:
    at, relation = match.start("name"), match["relation"]
    if name in NAMED:
        if relation != ":":
            raise SearchQueryError(query, match.start("relation"), f"write {name}:{match['value']}")
        return
    compared = (*METRICS, *AMOUNTS, *MOMENTS)
    if name not in compared:
        near = did_you_mean(name, (*NAMED, *compared))
        raise SearchQueryError(
            query,
            at,
            f"there is no '{name}'.{near} There are {', '.join(f'{known}:' for known in NAMED)}, and compared by >= > "
            f"<= <: {', '.join(compared)}; a text with ':' or '=' in it stands in quotation marks",
        )
    if relation in (":", "="):
        better = ">" if name in MOMENTS else ">="
        raise SearchQueryError(
            query, match.start("relation"), f"{name} is compared by >= > <= or <: write {name}{better}{match['value']}"
        )


def _number(query: str, at: int, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise SearchQueryError(query, at, f"{name} is compared with a number, as {name}>=0.7")
    return number


def _moment(query: str, at: int, name: str, value: str) -> datetime | timedelta:
    if span := SPAN.fullmatch(value):
        return int(span[1]) * SPANS[span[2]]
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise SearchQueryError(
            query, at, f"{name} is compared with a date, as {name}>2026-01-31, or with a span before now, as {name}>7d"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
