"""What a project says of its stored completions: whether there are any, how long they stay, and what is redacted.

Off until somebody with the scope ``project:write`` turns it on. Functions take a Session and never commit.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.completions.redaction import REDACTORS, check_redactors
from zhub.database import sessions
from zhub.errors import InvalidRequestError, QuotaExceededError
from zhub.ids import new_id
from zhub.models import CompletionSettings
from zhub.tenancy import quotas
from zhub.tenancy.keys import Caller

DEFAULT_KEPT_DAYS = 30
MAX_KEPT_DAYS = 3650
MAX_REQUEST_BYTES = 1 << 20


class SettingsChange(Schema):
    """A change of the settings: only the fields that are given."""

    model_config = ConfigDict(extra="forbid")
    enabled: Annotated[bool, Field(strict=True)] | None = None
    """Whether ``store: true`` is accepted. What is stored stays when this becomes false."""
    kept_days: Annotated[int, Field(strict=True, ge=1, le=MAX_KEPT_DAYS)] | None = None
    redact: list[str] | None = None
    """Names of redactors. What was stored before stays as it is."""


@dataclass(frozen=True)
class Told:
    """The settings as they are, or as they are until somebody changes them."""

    enabled: bool = False
    kept_days: int = DEFAULT_KEPT_DAYS
    redact: tuple[str, ...] = tuple(REDACTORS)
    stored_bytes: int = 0


def read(session: Session, project_id: uuid.UUID) -> Told:
    """The project's settings."""
    row = _row(session, project_id)
    if row is None:
        return Told()
    return Told(row.enabled, row.kept_days, tuple(row.redactors), row.stored_bytes)


def change(session: Session, caller: Caller, wanted: SettingsChange) -> Told:
    """Change the settings of the caller's project.

    Raises:
        InvalidRequestError: a redactor is not known.
    """
    before = read(session, caller.project_id)
    redact = list(before.redact) if wanted.redact is None else check_redactors(wanted.redact)
    values = {
        "enabled": before.enabled if wanted.enabled is None else wanted.enabled,
        "kept_days": wanted.kept_days or before.kept_days,
        "redactors": redact,
    }
    row = insert(CompletionSettings).values(
        id=new_id(), org_id=caller.org_id, project_id=caller.project_id, changes=0, stored_bytes=0, **values
    )
    session.execute(row.on_conflict_do_update(index_elements=["org_id", "project_id"], set_=values))
    return read(session, caller.project_id)


def require_storing(session: Session, caller: Caller, size_bytes: int) -> None:
    """Refuse a request with ``store: true`` that would not be stored; ``size_bytes`` is that of the request.

    Raises:
        InvalidRequestError: the project stores none, or the request is too large.
        QuotaExceededError: the organisation stores as much as it may.
    """
    if not read(session, caller.project_id).enabled:
        raise InvalidRequestError(
            f"store: the project '{caller.project}' stores no completions. Leave it out, or have it turned on with a "
            "key that has the scope 'project:write': POST /v1/stored_completions/settings.",
            param="store",
            code="storing_disabled",
        )
    if size_bytes > MAX_REQUEST_BYTES:
        raise InvalidRequestError(
            f"store: the request has {size_bytes:,} bytes, and one of at most {MAX_REQUEST_BYTES:,} is stored. Shorten "
            "its messages, or leave out 'store'.",
            param="store",
        )
    limit, stored = quotas.limits_of(session, caller.org_id).max_bytes, quotas.stored_bytes(session, caller.org_id)
    if stored + size_bytes > limit:
        raise QuotaExceededError(
            f"store: your organisation has {stored:,} of the {limit:,} bytes that it may store. Delete files or stored "
            "completions, leave out 'store', or ask the platform's operator for more."
        )


def lock(session: Session, project_id: uuid.UUID) -> CompletionSettings | None:
    """The project's row, locked, if it ever had one.

    Whatever changes several rows of a project's completions locks this one first, so that no two of these wait for each
    other.
    """
    return session.scalar(
        select(CompletionSettings)
        .where(CompletionSettings.project_id == project_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def visible_from(session: Session, project_id: uuid.UUID) -> datetime | None:
    """What was stored later is there; what was stored until then is deleted, or has been kept long enough."""
    row = _row(session, project_id)
    if row is None:
        return None
    oldest: datetime = sessions.now(session) - timedelta(days=row.kept_days)
    return oldest if row.cleared_at is None else max(oldest, row.cleared_at)


def clear(session: Session, caller: Caller) -> None:
    """Delete all stored completions of the caller's project, and the feedback on them. The sweep removes the rows."""
    session.execute(
        update(CompletionSettings)
        .where(CompletionSettings.project_id == caller.project_id)
        .values(cleared_at=func.clock_timestamp())
    )


def _row(session: Session, project_id: uuid.UUID) -> CompletionSettings | None:
    return session.scalar(
        select(CompletionSettings)
        .where(CompletionSettings.project_id == project_id)
        .execution_options(populate_existing=True)
    )
