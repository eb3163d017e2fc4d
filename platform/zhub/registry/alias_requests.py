"""Moves of protected aliases: asked for by one person, approved by another, withdrawn, rejected, or expired.

Functions take a Session and never commit.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from zhub.database import sessions
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError
from zhub.ids import public_id
from zhub.models import Alias, AliasRequest, Expert, Promotion, Release
from zhub.registry import aliases, protection, releases, versions
from zhub.registry.aliases import Expected
from zhub.registry.releases import ReleaseRecord
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller
from zhub.tenancy.persons import person_of

Status = Literal["open", "approved", "rejected", "withdrawn", "expired"]
Decision = Literal["approve", "reject", "withdraw"]
DECIDED: dict[Decision, str] = {"approve": "approved", "reject": "rejected", "withdraw": "withdrawn"}


@dataclass(frozen=True)
class Asker:
    """Who wants an alias moved: ``by`` is kept in its history, ``person`` must not be who approves."""

    by: str
    person: str
    promotion_id: uuid.UUID | None = None


def asker_of(caller: Caller) -> Asker:
    return Asker(public_id("API key", caller.key_id), person_of(caller))


def move(
    session: Session,
    name: str,
    to: VersionRecord | ReleaseRecord,
    asker: Asker,
    *,
    reason: str | None = None,
    expected: Expected | None = None,
    share: float | None = None,
) -> Alias | AliasRequest:
    """Move an alias, or where it is protected ask for that. ``share`` as ``aliases.start_canary`` has it.

    Raises:
        ConflictError: it points to another version than expected, or the same move is asked for already.
        NotFoundError: the version was deleted meanwhile; or an alias that should get a canary does not exist.
    """
    owner = aliases.owner_of(to)
    protected = protection.of(session, owner.project_id, name)
    if protected is not None:
        return _ask(session, name, to, asker, reason, expected, share, kept=timedelta(hours=protected.request_hours))
    if share is None or isinstance(to, VersionRecord):
        return aliases.move(session, name, to, by=asker.by, reason=reason, expected=expected)
    alias = aliases.get(session, owner, name)
    aliases.start_canary(session, alias, to, share, by=asker.by, reason=reason, expected=expected)
    return alias


def decide(session: Session, caller: Caller, request: AliasRequest, decision: Decision, reason: str | None) -> None:
    """Approve a move, which then happens; reject it; or withdraw it, as whoever asked for it.

    Raises:
        ConflictError: it is decided or expired; the approver asked for it; the alias has moved since, or the version
            was yanked or archived.
        InvalidRequestError: somebody else withdraws it.
        NotFoundError: the version was deleted.
    """
    session.refresh(request, with_for_update=True)
    status, name = status_of(session, request), public_id("alias request", request.id)
    if status != "open":
        raise ConflictError(f"{name} is {status}. Ask for the move again where it is still wanted.")
    person = person_of(caller)
    if decision == "withdraw" and person != request.person:
        raise InvalidRequestError(f"{name} was asked for by {request.person}, who alone withdraws it. Reject it.")
    if decision == "approve":
        if person == request.person:
            raise ConflictError(
                f"{name} was asked for by you ({person}): somebody else approves it. You may withdraw it."
            )
        _carry_out(session, request, by=person)
    session.execute(
        update(AliasRequest)
        .where(AliasRequest.id == request.id)
        .values(
            decision=DECIDED[decision],
            decided_at=func.now(),
            decided_by=public_id("API key", caller.key_id),
            decided_because=reason,
        )
    )
    session.flush()
    session.refresh(request)


def get(session: Session, project_id: uuid.UUID, request_id: uuid.UUID) -> AliasRequest:
    """The project's request with this id. Raises NotFoundError."""
    request = session.get(AliasRequest, request_id)
    if request is None or request.project_id != project_id:
        raise NotFoundError("alias request", public_id("alias request", request_id))
    return request


def list_requests(
    session: Session, project_id: uuid.UUID, *, status: Status | None, after: uuid.UUID | None, limit: int
) -> tuple[list[AliasRequest], bool]:
    """The project's requests, newest first, and whether more follow."""
    statement = select(AliasRequest).where(AliasRequest.project_id == project_id)
    if status is not None:
        statement = statement.where(_has_status(status))
    if after is not None:
        statement = statement.where(AliasRequest.id < after)
    listed = list(session.scalars(statement.order_by(AliasRequest.id.desc()).limit(limit + 1)))
    return listed[:limit], len(listed) > limit


def status_of(session: Session, request: AliasRequest) -> Status:
    return _status(request, sessions.now(session))


def statuses(session: Session, listed: Sequence[AliasRequest]) -> dict[uuid.UUID, Status]:
    """The status of each of these."""
    now = sessions.now(session) if listed else None
    return {request.id: _status(request, now) for request in listed if now is not None}


def of_promotions(session: Session, promotion_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, AliasRequest]:
    """What each of these gates has asked for, for those that asked."""
    asked = select(AliasRequest).where(AliasRequest.promotion_id.in_(promotion_ids)).order_by(AliasRequest.id)
    return {request.promotion_id: request for request in session.scalars(asked) if request.promotion_id is not None}


def target(session: Session, request: AliasRequest) -> VersionRecord | ReleaseRecord:
    """The version that the alias shall point to."""
    if request.version_id is not None:
        return versions.by_id(session, [request.version_id])[request.version_id]
    assert request.release_version_id is not None
    return releases.by_id(session, [request.release_version_id])[request.release_version_id]


def _ask(
    session: Session,
    name: str,
    to: VersionRecord | ReleaseRecord,
    asker: Asker,
    reason: str | None,
    expected: Expected | None,
    share: float | None,
    *,
    kept: timedelta,
) -> AliasRequest:
    owner = aliases.owner_of(to)
    is_expert = isinstance(owner, Expert)
    # Requests for one expert or release take turns, so that no move is asked for twice.
    line: type[Expert] | type[Release] = Expert if is_expert else Release
    session.execute(select(line.id).where(line.id == owner.id).with_for_update(key_share=True))
    current = aliases.current(session, owner, name)
    if expected is not None:
        aliases.check_expected(session, owner, name, expected)
    of_version = "version_id" if is_expert else "release_version_id"
    same = {"expert_id" if is_expert else "release_id": owner.id, "alias": name, of_version: to.version.id}
    columns = {**same, f"expected_{of_version}": current, "share": share}
    like = [getattr(AliasRequest, column).is_not_distinct_from(value) for column, value in columns.items()]
    if (earlier := session.scalar(select(AliasRequest).where(*like, _has_status("open")))) is not None:
        raise ConflictError(
            f"{public_id('alias request', earlier.id)} of {earlier.person} asks for the same move already. Approve it "
            "(POST /v1/alias_requests/{request_id}/decision), or wait."
        )
    request = AliasRequest(
        org_id=owner.org_id,
        project_id=owner.project_id,
        **columns,
        promotion_id=asker.promotion_id,
        by=asker.by,
        person=asker.person,
        reason=reason,
        expires_at=sessions.now(session) + kept,
    )
    session.add(request)
    session.flush()
    session.refresh(request)
    return request


def _carry_out(session: Session, request: AliasRequest, *, by: str) -> None:
    to = target(session, request)
    if isinstance(to, VersionRecord):
        aliases.check_promotable(to)
    reason = f"{request.reason or 'asked for'}; approved by {by}"
    options = {"by": request.by, "reason": reason, "expected": Expected(request.expected_id), "approved": True}
    if request.share is not None and isinstance(to, ReleaseRecord):
        alias = aliases.get(session, to.release, request.alias)
        aliases.start_canary(session, alias, to, request.share, **options)  # type: ignore[arg-type]
    else:
        aliases.move(session, request.alias, to, **options)  # type: ignore[arg-type]
    if request.promotion_id is not None:
        session.execute(update(Promotion).where(Promotion.id == request.promotion_id).values(promoted=True))


def _status(request: AliasRequest, now: datetime | None) -> Status:
    if request.decision is not None:
        return request.decision  # type: ignore[return-value]  # the table's constraint has the same values
    return "open" if now is not None and request.expires_at > now else "expired"


def _has_status(status: Status) -> ColumnElement[bool]:
    undecided = AliasRequest.decision.is_(None)
    if status == "open":
        return and_(undecided, AliasRequest.expires_at > func.now())
    return (
        and_(undecided, AliasRequest.expires_at <= func.now())
        if status == "expired"
        else AliasRequest.decision == status
    )
