"""How much other organisations use a version: added up by the hour for its owner, and reported."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.ids import new_id
from zhub.models import Expert, ExpertVersion, SharedUsage
from zhub.tenancy.token_usage import Tokens


@dataclass(frozen=True)
class UsedFromOutside:
    """Whose version was used by which other organisation, in which hour. ``user``: the name of that organisation."""

    owner_org_id: uuid.UUID
    version_id: uuid.UUID
    user_org_id: uuid.UUID
    user: str
    hour: datetime


@dataclass(frozen=True)
class SharedUse:
    """What an organisation has used of a version."""

    expert: str
    number: int
    user: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


def add(session: Session, used: Mapping[UsedFromOutside, Tokens]) -> None:
    """Add to the rows of the session's organisation, whose the versions are. The caller commits."""
    rows = [
        {
            "id": new_id(),
            "org_id": of.owner_org_id,
            "version_id": of.version_id,
            "user_org_id": of.user_org_id,
            "user": of.user,
            "hour": of.hour,
            "requests": tokens.requests,
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
        }
        # In one order, or two processes could each wait for a row of the other's.
        for of, tokens in sorted(used.items(), key=lambda item: repr(item[0]))
    ]
    statement = insert(SharedUsage)
    counts = ("requests", "prompt_tokens", "completion_tokens")
    added = {name: getattr(SharedUsage, name) + statement.excluded[name] for name in counts}
    key = ["org_id", "hour", "version_id", "user_org_id"]
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=added), rows)


def report(session: Session, project_id: uuid.UUID, began: datetime, until: datetime) -> Sequence[SharedUse]:
    """What others used of the project's experts from ``began`` until ``until``, the most first."""
    sums = [
        func.sum(column).label(column.key)
        for column in (SharedUsage.requests, SharedUsage.prompt_tokens, SharedUsage.completion_tokens)
    ]
    statement = (
        select(Expert.name, ExpertVersion.version, SharedUsage.user, *sums)
        .join(ExpertVersion, ExpertVersion.id == SharedUsage.version_id)
        .join(Expert, Expert.id == ExpertVersion.expert_id)
        .where(Expert.project_id == project_id, SharedUsage.hour >= began, SharedUsage.hour <= until)
        .group_by(Expert.name, ExpertVersion.version, SharedUsage.user)
        .order_by(sums[1].desc(), Expert.name, ExpertVersion.version, SharedUsage.user)
        .limit(1000)
    )
    return [SharedUse(*row[:3], *map(int, row[3:])) for row in session.execute(statement)]
