"""The names that a project's experts and releases have: one space of names, because model ids show no kind.

``main.support@v3`` is a version of an expert or of a release, never of both. A name that one of them had is never the
other's, whatever has been deleted or renamed since.
"""

import hashlib
import uuid

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from zhub.errors import ConflictError
from zhub.models import Expert, Release


def claim_for_expert(session: Session, project_id: uuid.UUID, name: str) -> None:
    """Keep releases from taking the name before the transaction ends.

    Raises:
        ConflictError: a release of the project has or had it.
    """
    _lock(session, project_id, name)
    check_free_of_releases(session, project_id, name)


def claim_for_release(session: Session, project_id: uuid.UUID, name: str) -> None:
    """Keep experts from taking the name before the transaction ends.

    Raises:
        ConflictError: an expert of the project has or had it.
    """
    _lock(session, project_id, name)
    has_name = or_(Expert.name == name, Expert.former_names.contains([name]))
    if session.scalar(select(Expert.id).where(Expert.project_id == project_id, has_name).limit(1)) is not None:
        raise ConflictError(
            f"The project has or had an expert '{name}', and experts and releases share one space of names. "
            "Choose another for the release."
        )


def check_free_of_releases(session: Session, project_id: uuid.UUID, name: str) -> None:
    """Raise ConflictError where a release of the project has or had the name."""
    taken = select(Release.id).where(Release.project_id == project_id, Release.name == name)
    if session.scalar(taken) is not None:
        raise ConflictError(
            f"The project has or had a release '{name}', and experts and releases share one space of names. "
            "Choose another for the expert."
        )


def _lock(session: Session, project_id: uuid.UUID, name: str) -> None:
    # Two tables, so that no unique constraint spans them.
    digest = hashlib.sha256(f"{project_id}.{name}".encode()).digest()
    session.execute(select(func.pg_advisory_xact_lock(int.from_bytes(digest[:8], signed=True))))
