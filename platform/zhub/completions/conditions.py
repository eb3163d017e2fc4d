"""Which stored completions, in words that a person reads: ``model:main.sums@prod rating:up since:7d metadata.team:a``.

Conditions are separated by blanks, and all of them hold; ``-`` before one turns it round. A value with blanks stands in
double quotes. docs/guides/flywheel.md has the table of them.
"""

import operator
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, not_, select
from sqlalchemy.orm import Session

from zhub.database import sessions
from zhub.errors import InvalidRequestError
from zhub.models import ExpertVersion, Feedback, StoredCompletion
from zhub.registry import versions
from zhub.suggestions import did_you_mean
from zhub.tenancy.keys import Caller

MAX_CHARACTERS = 1000
MAX_CONDITIONS = 20
CONDITION = re.compile(
    r"(?P<minus>-?)(?P<name>[a-z]+(?:\.[^\s:<>\"]{1,64})?)(?P<relation>:|<=|>=|<|>)(?P<value>\"[^\"]*\"|[^\s\"]+)(?=\s|$)"
)
SPAN = re.compile(r"(\d{1,5})([mhdw])")
SPANS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
FINISH_REASONS = ("stop", "length", "tool_calls")
NAMES = ("model", "expert", "rating", "reference", "finish", "since", "until", "metadata")


@dataclass(frozen=True)
class Condition:
    """One condition; ``key`` is that of ``metadata.key``."""

    name: str
    relation: str
    value: str
    key: str | None = None
    negated: bool = False

    def __str__(self) -> str:
        name = self.name if self.key is None else f"{self.name}.{self.key}"
        return f"{'-' if self.negated else ''}{name}{self.relation}{self.value}"


def parse(where: str) -> list[Condition]:
    """The conditions of a text; without any, all completions are meant.

    Raises:
        InvalidRequestError: by the piece of text that is none.
    """
    if len(where) > MAX_CHARACTERS:
        raise _refused(f"it has {len(where):,} characters, and may have {MAX_CHARACTERS:,}")
    conditions = []
    position, text = 0, where.strip()
    while position < len(text):
        match = CONDITION.match(text, position)
        if match is None:
            raise _refused(f"'{text[position:].split()[0]}' is no condition; one is written name:value, as rating:up")
        conditions.append(_condition(match))
        position = len(text) - len(text[match.end() :].lstrip())
    if len(conditions) > MAX_CONDITIONS:
        raise _refused(f"it has {len(conditions)} conditions, and may have {MAX_CONDITIONS}")
    return conditions


def as_sql(session: Session, caller: Caller, conditions: list[Condition]) -> list[ColumnElement[bool]]:
    """The conditions on rows of StoredCompletion. Spans count back from now.

    Raises:
        InvalidRequestError: a value is not one of its condition's.
        NotFoundError: there is no such expert.
    """
    made = []
    for condition in conditions:
        clause = _clause(session, caller, condition)
        made.append(not_(func.coalesce(clause, False)) if condition.negated else clause)
    return made


def _condition(match: re.Match[str]) -> Condition:
    name, dot, key = match["name"].partition(".")
    if name not in NAMES or (name == "metadata") != bool(dot):
        known = ", ".join(f"{known}.KEY" if known == "metadata" else known for known in NAMES)
        raise _refused(f"there is no condition '{match['name']}'.{did_you_mean(name, NAMES)} There are: {known}")
    if match["relation"] != ":" and name != "rating":
        raise _refused(f"'{match[0]}': only a rating is compared by '{match['relation']}'; write {match['name']}:value")
    value = match["value"].strip('"')
    return Condition(name, match["relation"], value, key if dot else None, negated=bool(match["minus"]))


def _clause(session: Session, caller: Caller, condition: Condition) -> ColumnElement[bool]:
    value = condition.value
    match condition.name:
        case "model":
            return StoredCompletion.model == value
        case "expert":
            return _by_expert(session, caller, value)
        case "rating":
            return _rated(condition)
        case "reference":
            has_reference = select(Feedback.id).where(
                Feedback.completion_id == StoredCompletion.id,
                Feedback.reference.is_not(None),
                Feedback.deleted_at.is_(None),
            )
            return {"yes": has_reference.exists(), "no": ~has_reference.exists()}[_one_of(condition, ("yes", "no"))]
        case "finish":
            reason = StoredCompletion.answer[("choices", "0", "finish_reason")]
            return _text_is(reason, _one_of(condition, FINISH_REASONS))
        case "metadata":
            assert condition.key is not None
            return _text_is(StoredCompletion.labels[condition.key], value)
        case "since":
            return StoredCompletion.created_at >= _moment(session, condition)
        case _:
            return StoredCompletion.created_at < _moment(session, condition)


def _text_is(part: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    """The condition that a part of a JSON column is this text."""
    equal: ColumnElement[bool] = part.astext == value
    return equal


def _by_expert(session: Session, caller: Caller, name: str) -> ColumnElement[bool]:
    if "@" in name:
        return StoredCompletion.version_id == versions.get_version(session, caller.project_id, name).version.id
    expert = versions.get_expert(session, caller, name)
    return StoredCompletion.version_id.in_(select(ExpertVersion.id).where(ExpertVersion.expert_id == expert.id))


def _rated(condition: Condition) -> ColumnElement[bool]:
    rating = StoredCompletion.rating
    words = {"up": rating > 0, "down": rating < 0, "any": rating.is_not(None), "none": rating.is_(None)}
    if condition.relation == ":":
        return words[_one_of(condition, tuple(words))]
    try:
        number = float(condition.value)
    except ValueError as exc:
        raise _refused(f"'{condition}': a rating is compared with a number from -1 to 1") from exc
    compared: ColumnElement[bool] = RELATIONS[condition.relation](rating, number)
    return compared


def _moment(session: Session, condition: Condition) -> datetime:
    """A span before now, or a date and a time; without a zone, of UTC."""
    if span := SPAN.fullmatch(condition.value):
        return sessions.now(session) - int(span[1]) * SPANS[span[2]]
    try:
        moment = datetime.fromisoformat(condition.value)
    except ValueError as exc:
        raise _refused(f"'{condition}': expected a span as 90m, 12h, 7d, 2w, or a date as 2026-01-31") from exc
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _one_of(condition: Condition, values: tuple[str, ...]) -> str:
    if condition.value not in values:
        hint = ", or a comparison as rating>=0.5" if condition.name == "rating" else ""
        raise _refused(f"'{condition}': expected {', '.join(values[:-1])} or {values[-1]}{hint}")
    return condition.value


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"where: {why}.", param="where")
