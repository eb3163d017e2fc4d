"""Protected aliases: in a project, those of a name, such as ``prod``, move only once a second person has approved it.

It holds for the aliases of experts and of releases alike. Going back to an earlier version needs nobody's approval.
Functions take a Session and never commit.
"""

import uuid
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.errors import ConflictError, NotFoundError
from zhub.ids import new_id, public_id
from zhub.models import AliasProtection, Expert, Release
from zhub.tenancy.keys import Caller


def of(session: Session, project_id: uuid.UUID, alias: str) -> AliasProtection | None:
    """The protection of the project's aliases of this name, if they are protected."""
    return session.scalar(select(AliasProtection).where(*_named(project_id, alias)))


def list_protected(session: Session, project_id: uuid.UUID) -> list[AliasProtection]:
    """The names of aliases that are protected in a project."""
    going_on = (AliasProtection.project_id == project_id, AliasProtection.ended_at.is_(None))
    return list(session.scalars(select(AliasProtection).where(*going_on).order_by(AliasProtection.name)))


def protect(session: Session, caller: Caller, alias: str, *, request_hours: int) -> AliasProtection:
    """Protect the aliases of this name, or change how long requests wait. What is asked for already stays as it is."""
    said = {"by": public_id("API key", caller.key_id), "request_hours": request_hours, "ended_at": None}
    row: dict[str, Any] = {"id": new_id(), "org_id": caller.org_id, "project_id": caller.project_id, "name": alias}
    same_name = [AliasProtection.project_id, AliasProtection.name]
    session.execute(
        insert(AliasProtection).values(row | said).on_conflict_do_update(index_elements=same_name, set_=said)
    )
    protected = of(session, caller.project_id, alias)
    assert protected is not None
    session.refresh(protected)
    return protected


def unprotect(session: Session, caller: Caller, alias: str) -> None:
    """Let aliases of this name move at once. Raises NotFoundError where they do."""
    ended = update(AliasProtection).where(*_named(caller.project_id, alias)).values(ended_at=func.now())
    if session.scalar(ended.returning(AliasProtection.id)) is None:
        raise NotFoundError("protected alias", alias, "GET /v1/protected_aliases lists those of the project.")


def refuse_protected(session: Session, owner: Expert | Release, alias: str, what: str) -> None:
    """Raise ConflictError where an alias is protected, with what to do in place of ``what``."""
    if of(session, owner.project_id, alias) is not None:
        raise ConflictError(
            f"'@{alias}' is protected in this project, so {what} needs a second person. Ask for a move of it "
            "(PUT /v1/experts/{expert}/aliases/{alias}), which somebody else approves "
            "(POST /v1/alias_requests/{request_id}/decision)."
        )


def _named(project_id: uuid.UUID, alias: str) -> tuple[ColumnElement[bool], ...]:
    named = (AliasProtection.project_id == project_id, AliasProtection.name == alias)
    return (*named, AliasProtection.ended_at.is_(None))
