"""Grants: what other organisations may do with an expert; given, asked for, decided, ended. Who sees it without one.

A grant never copies anything, and is looked at whenever it is used: one that has ended or expired gives nothing from
that moment. Functions take a Session and never commit.
"""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import func, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from zhub.database import sessions
from zhub.database.pages import Page, read_page
from zhub.database.sessions import as_guest
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError
from zhub.ids import parse_id, public_id
from zhub.models import PERMISSIONS, Expert, ExpertGrant, ExpertVersion, Organization
from zhub.registry import metadata, sharing, versions
from zhub.registry.sharing import Permission
from zhub.tenancy.keys import Caller

MAX_MESSAGE_CHARACTERS = 2000
Visibility = Literal["private", "organization", "granted", "public"]
Direction = Literal["given", "received"]


class GrantRequest(Schema):
    """What another organisation may do with an expert of the key's project."""

    model_config = ConfigDict(extra="forbid")
    expert: str
    """``<project>.<expert>``, or ``<project>.<expert>@v<number>`` for that version alone."""
    organization: str
    """Its name."""
    project: str | None = None
    """The id of one of its projects, ``proj-…``, for that alone; null: for all."""
    permission: Permission
    """``view`` its card and figures; ``use``: answer by it; ``fork``: begin trainings from it; ``manage``: move its
    aliases. Each with those before it."""
    expires_at: Annotated[int, Field(ge=0, le=253402300799)] | None = None
    """A Unix time; null: until it is revoked."""


class AccessRequest(Schema):
    """What the key's organisation asks for."""

    model_config = ConfigDict(extra="forbid")
    expert: str
    """``<organisation>.<project>.<expert>``."""
    permission: Literal["use", "fork", "manage"]
    message: Annotated[str, Field(max_length=MAX_MESSAGE_CHARACTERS)] | None = None
    """Why."""
    for_project: bool = False
    """For the key's project alone, and not for all of its organisation."""


class Decision(Schema):
    """What is said to a request for access."""

    model_config = ConfigDict(extra="forbid")
    approve: bool
    permission: Permission | None = None
    """In place of the one that was asked for."""
    expires_at: Annotated[int, Field(ge=0, le=253402300799)] | None = None


def set_visibility(session: Session, caller: Caller, expert: Expert, visibility: Visibility) -> None:
    """Say who sees an expert without a grant, and note who did. Grants stay."""
    session.refresh(expert, with_for_update=True)
    if expert.visibility == visibility:
        return
    changes = {"visibility": {"from": expert.visibility, "to": visibility}}
    expert.visibility = visibility
    metadata.record(session, caller, expert, None, changes)


def give(session: Session, caller: Caller, request: GrantRequest) -> ExpertGrant:
    """Give a grant, or change the one that the organisation, or its project, has.

    Raises:
        NotFoundError: there is no such expert in the project, or no such organisation.
        InvalidRequestError: the organisation is the caller's own, or the grant would have expired.
        ConflictError: the version's base is private, or somebody gives the same grant at this moment.
    """
    expert, version = _subject(session, caller, request.expert)
    if version is not None and request.permission == "manage":
        raise InvalidRequestError(
            "permission: who manages an expert moves its aliases between its versions; give it of the expert, "
            f"'{caller.project}.{expert.name}'.",
            param="permission",
        )
    grantee = _organization(session, caller, request.organization)
    project_id = None if request.project is None else parse_id("project", request.project)
    granted: dict[str, Any] = {"permission": request.permission, "version_id": version.id if version else None}
    granted["expires_at"] = _expiry(session, request.expires_at)
    own = sharing.organization_name(session, caller)
    of_version = f"@v{version.version}" if version else ""
    granted["subject"] = f"{own}.{caller.project}.{expert.name}{of_version}"
    by = public_id("API key", caller.key_id)
    if (before := _open(session, expert.id, grantee.id, project_id, "active")) is not None:
        _end(session, before, "revoked", by)
    grant = ExpertGrant(
        org_id=caller.org_id,
        expert_id=expert.id,
        grantee_org_id=grantee.id,
        grantee_project_id=project_id,
        grantee=grantee.name if request.project is None else f"{grantee.name} ({request.project})",
        status="active",
        by=by,
        **granted,
    )
    return _added(session, grant, "Somebody gives this grant at this moment; look at it, and try again.")


def ask(session: Session, caller: Caller, request: AccessRequest) -> ExpertGrant:
    """Ask the owner of an expert for access.

    Raises:
        NotFoundError: there is no such expert that the caller may see.
        InvalidRequestError: it is the caller's own organisation's.
        ConflictError: the caller may do that already, or has asked for it.
    """
    found = sharing.find(session, caller, request.expert)
    if found.organization is None:
        raise InvalidRequestError(
            f"'{request.expert}' is your own organisation's: ask its project to change the visibility.", param="expert"
        )
    if PERMISSIONS.index(found.permission) >= PERMISSIONS.index(request.permission):
        raise ConflictError(f"Your organisation may '{found.permission}' {request.expert} already.")
    own = sharing.organization_name(session, caller)
    grant = ExpertGrant(
        org_id=found.expert.org_id,
        expert_id=found.expert.id,
        version_id=found.record.version.id if found.record else None,
        grantee_org_id=caller.org_id,
        grantee_project_id=caller.project_id if request.for_project else None,
        grantee=f"{own}.{caller.project}" if request.for_project else own,
        subject=request.expert,
        permission=request.permission,
        status="requested",
        message=request.message or None,
        by=public_id("API key", caller.key_id),
    )
    return _added(session, grant, f"Access to {request.expert} is asked for already; wait for the decision.")


def decide(session: Session, caller: Caller, grant_id: uuid.UUID, decision: Decision) -> ExpertGrant:
    """Approve or deny a request for access to an expert of the caller's project.

    Raises:
        NotFoundError: there is no such request to the project.
        ConflictError: it was decided, or withdrawn.
    """
    grant = _locked(session, caller, grant_id, "given")
    if grant.status != "requested":
        raise ConflictError(f"The request was {_said(grant)} already.")
    by = public_id("API key", caller.key_id)
    if not decision.approve:
        return _end(session, grant, "denied", by)
    expires_at = _expiry(session, decision.expires_at)
    before = _open(session, grant.expert_id, grant.grantee_org_id, grant.grantee_project_id, "active")
    if before is not None:
        _end(session, before, "revoked", by)
    grant.status, grant.decided_by, grant.decided_at = "active", by, sessions.now(session)
    grant.permission = decision.permission or grant.permission
    grant.expires_at = expires_at
    session.flush()
    return grant


def end(session: Session, caller: Caller, grant_id: uuid.UUID) -> ExpertGrant:
    """End a grant or a request: its owner revokes or denies it, who has it gives it up. Ended ones stay as they are.

    Raises:
        NotFoundError: there is no such grant, given by the caller's project or received by it.
    """
    try:
        grant, status = _locked(session, caller, grant_id, "given"), "revoked"
    except NotFoundError:
        grant, status = _locked(session, caller, grant_id, "received"), "withdrawn"
    if grant.status not in ("requested", "active"):
        return grant
    if grant.status == "requested" and status == "revoked":
        status = "denied"
    return _end(session, grant, status, public_id("API key", caller.key_id))


def get(session: Session, caller: Caller, grant_id: uuid.UUID) -> ExpertGrant:
    """The grant of this id, given by the caller's project or received by it. Raises NotFoundError."""
    grant = session.get(ExpertGrant, grant_id)
    if grant is None or not (_gives(session, caller, grant) or _receives(caller, grant)):
        raise NotFoundError("grant", public_id("grant", grant_id))
    return grant


def list_grants(
    session: Session, caller: Caller, direction: Direction, page: Page, *, status: str | None
) -> tuple[list[ExpertGrant], bool]:
    """The grants and requests that the caller's project gives, or that it receives; newest first, and whether more
    follow."""
    if direction == "given":
        rows = select(ExpertGrant).join(Expert, Expert.id == ExpertGrant.expert_id)
        rows = rows.where(ExpertGrant.org_id == caller.org_id, Expert.project_id == caller.project_id)
    else:
        of_project = ExpertGrant.grantee_project_id.is_(None), ExpertGrant.grantee_project_id == caller.project_id
        rows = select(ExpertGrant).where(ExpertGrant.grantee_org_id == caller.org_id, or_(*of_project))
    if status is not None:
        rows = rows.where(ExpertGrant.status == status)
    return read_page(session, rows, ExpertGrant.id, page)


def hold(session: Session, grant_ids: list[uuid.UUID]) -> bool:
    """Whether one of these grants of the session's tenant is active; it then is until the transaction ends."""
    active = select(ExpertGrant.id).where(
        ExpertGrant.id.in_(grant_ids),
        ExpertGrant.status == "active",
        or_(ExpertGrant.expires_at.is_(None), ExpertGrant.expires_at > func.now()),
    )
    return session.scalar(active.limit(1).with_for_update(read=True)) is not None


def _subject(session: Session, caller: Caller, name: str) -> tuple[Expert, ExpertVersion | None]:
    if "@" not in name:
        return versions.get_expert(session, caller, name), None
    record = versions.get_version(session, caller.project_id, name)
    if record.base.private:
        raise ConflictError(
            f"{record.name} belongs to the base '{record.base.name}', which is private to your organisation: nobody "
            "else can use it."
        )
    return record.expert, record.version


def _organization(session: Session, caller: Caller, name: str) -> Organization:
    """The organisation of exactly this name, which is all that a caller learns of it."""
    with as_guest(session, caller.project_id):
        session.execute(text("SELECT set_config('zhub.named_organization', :name, true)"), {"name": name})
        found = session.scalar(select(Organization).where(Organization.name == name))
    if found is None:
        raise NotFoundError("organisation", name)
    if found.id == caller.org_id:
        raise InvalidRequestError(
            f"'{name}' is your own organisation. Its other projects use the expert where its visibility is "
            "'organization'; a grant is for others.",
            param="organization",
        )
    return found


def _expiry(session: Session, unix_time: int | None) -> datetime | None:
    if unix_time is None:
        return None
    now = sessions.now(session)
    if unix_time <= now.timestamp():
        raise InvalidRequestError("expires_at: that is past. Give a later Unix time, or null.", param="expires_at")
    return datetime.fromtimestamp(unix_time, now.tzinfo)


def _open(
    session: Session, expert_id: uuid.UUID, org_id: uuid.UUID, project_id: uuid.UUID | None, status: str
) -> ExpertGrant | None:
    of_grantee = (ExpertGrant.grantee_org_id == org_id, ExpertGrant.grantee_project_id.is_not_distinct_from(project_id))
    of_expert = (ExpertGrant.expert_id == expert_id, ExpertGrant.status == status)
    return session.scalar(select(ExpertGrant).where(*of_expert, *of_grantee).with_for_update())


def _added(session: Session, grant: ExpertGrant, otherwise: str) -> ExpertGrant:
    session.add(grant)
    try:
        session.flush()
    except IntegrityError as exc:
        raise ConflictError(otherwise) from exc
    session.refresh(grant)
    return grant


def _end(session: Session, grant: ExpertGrant, status: str, by: str) -> ExpertGrant:
    ended = {"status": status, "decided_by": by, "ended_at": func.now()}
    session.execute(update(ExpertGrant).where(ExpertGrant.id == grant.id).values(ended))
    session.flush()
    session.refresh(grant)
    return grant


def _locked(session: Session, caller: Caller, grant_id: uuid.UUID, direction: Direction) -> ExpertGrant:
    """A grant that nobody else changes before the transaction ends; one that has ended is only read."""
    of_id = select(ExpertGrant).where(ExpertGrant.id == grant_id)
    grant = session.scalar(of_id)
    is_theirs = grant is not None and (
        _gives(session, caller, grant) if direction == "given" else _receives(caller, grant)
    )
    if grant is None or not is_theirs:
        raise NotFoundError("grant", public_id("grant", grant_id))
    # Who receives a grant that has ended may not change it, so finds none to lock.
    session.scalar(of_id.with_for_update().execution_options(populate_existing=True))
    return grant


def _gives(session: Session, caller: Caller, grant: ExpertGrant) -> bool:
    of_project = select(Expert.id).where(Expert.id == grant.expert_id, Expert.project_id == caller.project_id)
    return grant.org_id == caller.org_id and session.scalar(of_project) is not None


def _receives(caller: Caller, grant: ExpertGrant) -> bool:
    return grant.grantee_org_id == caller.org_id and grant.grantee_project_id in (None, caller.project_id)


def _said(grant: ExpertGrant) -> str:
    return "approved" if grant.status == "active" else grant.status
