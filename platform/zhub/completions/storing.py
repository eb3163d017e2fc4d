"""A completion becomes a row: redacted, measured, and counted. Functions take a Session and never commit."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.completions import settings
from zhub.completions.redaction import redacted
from zhub.models import ExpertVersion, StoredCompletion


@dataclass(frozen=True)
class Completion:
    """A request and its whole answer, as they are to be stored.

    Attributes:
        completion_id: of the answer; storing it twice stores it once.
        model: as it was asked for.
        request: its messages, its tools and how its tokens were drawn.
        answer: the body of the answer, without its id.
        labels: the dialect's ``metadata``.
    """

    completion_id: uuid.UUID
    org_id: uuid.UUID
    project_id: uuid.UUID
    model: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    labels: Mapping[str, str]


def store(session: Session, completion: Completion) -> bool:
    """Write the row of a completion; False where its project has turned storing off, or has the row already."""
    said = settings.read(session, completion.project_id)
    if not said.enabled:
        return False
    request, answer, labels = (
        redacted(dict(part), said.redact) for part in (completion.request, completion.answer, completion.labels)
    )
    size_bytes = sum(len(json.dumps(part, ensure_ascii=False).encode()) for part in (request, answer, labels))
    row = settings.lock(session, completion.project_id)
    assert row is not None  # nobody deletes one
    inserted = session.scalar(
        insert(StoredCompletion)
        .values(
            id=completion.completion_id,
            org_id=completion.org_id,
            project_id=completion.project_id,
            model=completion.model,
            version_id=_only_version(session, completion),
            request=request,
            answer=answer,
            labels=labels,
            size_bytes=size_bytes,
            change=row.changes + 1,
        )
        .on_conflict_do_nothing()
        .returning(StoredCompletion.id)
    )
    if inserted is None:
        return False
    row.changes += 1
    row.stored_bytes += size_bytes
    session.flush()
    return True


def _only_version(session: Session, completion: Completion) -> uuid.UUID | None:
    """The version that answered, if it was one alone. A checkpoint is none."""
    experts = completion.answer["experts"]
    if len(experts) != 1:
        return None
    versions = select(ExpertVersion.id).where(
        ExpertVersion.org_id == completion.org_id, ExpertVersion.digest == experts[0]["digest"]
    )
    return session.scalar(versions.order_by(ExpertVersion.id).limit(1))
