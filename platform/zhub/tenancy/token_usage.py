"""Tokens that models read and wrote for an organisation: added up by the hour, and reported."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.ids import new_id
from zhub.models import TokenUsage

Width = Literal["1h", "1d"]
SECONDS: dict[Width, int] = {"1h": 3600, "1d": 86_400}
GROUPS = {
    "project_id": TokenUsage.project_id,
    "api_key_id": TokenUsage.key_id,
    "base_model": TokenUsage.base_model,
    "experts": TokenUsage.experts,
}


@dataclass(frozen=True)
class UsedBy:
    """Whose tokens they are, of which hour, base and experts. ``experts``: see ``TokenUsage``."""

    org_id: uuid.UUID
    project_id: uuid.UUID
    key_id: uuid.UUID
    hour: datetime
    base_model: str
    experts: str


@dataclass(frozen=True)
class Tokens:
    """Requests and their tokens. ``cached`` are those of the prompts that had been read for an earlier request."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.requests + other.requests,
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
        )


@dataclass(frozen=True)
class Filter:
    """What of an organisation's usage is reported; empty: all of it.

    ``models`` are names of experts' versions or, where it answered alone, of a base.
    """

    project_ids: Sequence[uuid.UUID] = ()
    key_ids: Sequence[uuid.UUID] = ()
    models: Sequence[str] = ()


@dataclass(frozen=True)
class Used:
    """What was used within a bucket of time, by what it is grouped by."""

    began: datetime
    group: Mapping[str, Any]
    tokens: Tokens


def hour_of(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def add(session: Session, org_id: uuid.UUID, used: Mapping[UsedBy, Tokens]) -> None:
    """Add to the rows of one organisation. The caller commits."""
    rows = [
        {
            "id": new_id(),
            "org_id": org_id,
            "project_id": by.project_id,
            "key_id": by.key_id,
            "hour": by.hour,
            "base_model": by.base_model,
            "experts": by.experts,
            "requests": tokens.requests,
            "prompt_tokens": tokens.prompt,
            "cached_tokens": tokens.cached,
            "completion_tokens": tokens.completion,
        }
        # In one order, or two processes could each wait for a row of the other's.
        for by, tokens in sorted(used.items(), key=lambda item: repr(item[0]))
    ]
    statement = insert(TokenUsage)
    counts = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    added = {name: getattr(TokenUsage, name) + statement.excluded[name] for name in counts}
    key = ["org_id", "hour", "project_id", "key_id", "base_model", "experts"]
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=added), rows)


def report(
    session: Session, began: datetime, until: datetime, width: Width, groups: Sequence[str], only: Filter
) -> list[Used]:
    """What was used in each bucket of ``width`` from ``began`` until ``until``; buckets without usage are left out.

    Args:
        groups: keys of GROUPS.
    """
    bucket = func.date_bin(func.make_interval(0, 0, 0, 0, 0, 0, SECONDS[width]), TokenUsage.hour, began).label("bucket")
    columns = [GROUPS[name].label(name) for name in groups]
    sums = [
        func.sum(getattr(TokenUsage, name))
        for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
    ]
    query = select(bucket, *columns, *sums).where(TokenUsage.hour >= began, TokenUsage.hour < until)
    if only.project_ids:
        query = query.where(TokenUsage.project_id.in_(only.project_ids))
    if only.key_ids:
        query = query.where(TokenUsage.key_id.in_(only.key_ids))
    if only.models:
        model = func.coalesce(func.nullif(TokenUsage.experts, ""), TokenUsage.base_model)
        query = query.where(model.in_(only.models))
    query = query.group_by("bucket", *columns).order_by("bucket", *columns)
    count = len(groups)
    return [
        Used(row[0], dict(zip(groups, row[1 : 1 + count], strict=True)), Tokens(*map(int, row[1 + count :])))
        for row in session.execute(query)
    ]
