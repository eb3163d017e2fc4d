"""What an organisation may use: the defaults, and what its operator has set instead."""

import uuid
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from zhub.errors import QuotaExceededError
from zhub.models import BaseModel, CompletionSettings, DatasetVersion, Quota

DEFAULT_MAX_QUEUED = 500
DEFAULT_MAX_BYTES = 200 << 30
DEFAULT_REQUESTS_PER_MINUTE = 12_000


_EXPORTS = text(
    "SELECT sum((file ->> 'size_bytes')::bigint) FROM expert_exports, jsonb_array_elements(files) AS file"
    " WHERE org_id = :org_id AND swept_at IS NULL AND jsonb_typeof(files) = 'array'"
)


@dataclass(frozen=True)
class Limits:
    """The limits of one organisation."""

    max_queued: int = DEFAULT_MAX_QUEUED
    """Jobs that may wait at a time."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Of its dataset files, of the files of its private base models, of exports, and of its stored completions."""
    requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE
    """That are answered: by all processes of the API together where they have one Redis, else by each."""


def limits_of(session: Session, org_id: uuid.UUID) -> Limits:
    """The limits of an organisation: the defaults where none are set."""
    columns = (Quota.max_queued, Quota.max_bytes, Quota.requests_per_minute)
    row = session.execute(select(*columns).where(Quota.org_id == org_id)).one_or_none()
    given = {} if row is None else {name: value for name, value in row._mapping.items() if value is not None}
    return Limits(**given)


def stored_bytes(session: Session, org_id: uuid.UUID) -> int:
    """What files, private base models, exports and stored completions take; equal ones count as often as they stand."""
    datasets = select(func.coalesce(func.sum(DatasetVersion.size_bytes), 0)).where(
        DatasetVersion.org_id == org_id, DatasetVersion.deleted_at.is_(None)
    )
    sources = select(BaseModel.source).where(BaseModel.owner_org_id == org_id, BaseModel.private)
    of_bases: int = sum(file["size_bytes"] for source in session.scalars(sources) for file in source["files"])
    of_completions = select(func.coalesce(func.sum(CompletionSettings.stored_bytes), 0)).where(
        CompletionSettings.org_id == org_id
    )
    counted = (session.scalar(datasets), session.scalar(of_completions), session.scalar(_EXPORTS, {"org_id": org_id}))
    return of_bases + sum(int(size_bytes or 0) for size_bytes in counted)


def check_bytes(session: Session, org_id: uuid.UUID, size_bytes: int) -> None:
    """Refuse a file that does not fit.

    Raises:
        QuotaExceededError: with it the organisation would have more bytes than it may.
    """
    limit, stored = limits_of(session, org_id).max_bytes, stored_bytes(session, org_id)
    if stored + size_bytes > limit:
        raise QuotaExceededError(
            f"The file has {size_bytes:,} bytes, and your organisation has {stored:,} of the {limit:,} that it may "
            "store. Delete files or stored completions, or ask the platform's operator for more."
        )
