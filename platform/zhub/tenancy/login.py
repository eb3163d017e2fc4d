"""Who has proved by an OpenID provider to be somebody, becomes a user of an organisation for as long as a key lasts."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Engine, func, or_, select
from sqlalchemy.orm import Session

from zhub.database.sessions import identity_session, tenant_session
from zhub.errors import AccessEndedError, ConflictError, PermissionDeniedError
from zhub.identity.provider import Identity
from zhub.ids import public_id
from zhub.models import ApiKey, Invitation, Organization, User
from zhub.tenancy import audit, invitations
from zhub.tenancy.audit import Actor
from zhub.tenancy.keys import Origin


@dataclass(frozen=True)
class Place:
    """Where somebody logs in to; None: the one there is."""

    organization: str | None = None
    project: str | None = None


@dataclass(frozen=True)
class LoggedIn:
    """A user with a key that was just made."""

    user: User
    organization: str
    key: ApiKey
    value: str


def log_in(
    engine: Engine, identity: Identity, place: Place, *, lasts: timedelta, secret_key: str, origin: Origin
) -> LoggedIn:
    """Give somebody a key to an organisation that they are a member of, or invited to by their verified address.

    Raises:
        PermissionDeniedError: no organisation knows or expects them.
        ConflictError: several do, and none was named.
        NotFoundError: they have no role in the project.
        AccessEndedError: the organisation is suspended.
    """
    organization = _choose(_organizations(engine, identity), place.organization, identity)
    with tenant_session(engine, organization.id) as session:
        if organization.suspended_at is not None:
            raise AccessEndedError(
                f"The organisation {organization.name} is suspended. Ask the platform's operator why."
            )
        user = _user_of(session, identity, origin)
        key, value = invitations.personal_key(
            session, user, "login", lasts=lasts, secret_key=secret_key, project_name=place.project
        )
        actor = Actor(user.email or user.name, key.id, user.id, origin)
        audit.add(session, user.org_id, actor, "login.succeeded", public_id("user", user.id))
    return LoggedIn(user, organization.name, key, value)


def _organizations(engine: Engine, identity: Identity) -> list[Organization]:
    """Those that know the identity, or expect its address."""
    with identity_session(engine, identity.issuer, identity.subject, identity.email) as session:
        found: set[uuid.UUID] = set(session.scalars(select(User.org_id).where(_is(identity))))
        if identity.email is not None:
            found |= set(session.scalars(select(Invitation.org_id).where(*_open(identity.email))))
    organizations = []
    for org_id in sorted(found):
        with tenant_session(engine, org_id) as session:
            organizations.append(session.get_one(Organization, org_id))
    return organizations


def _choose(found: Sequence[Organization], name: str | None, identity: Identity) -> Organization:
    if not found:
        who = identity.email or "your account, whose address is not verified,"
        raise PermissionDeniedError(
            "login", message=f"No organisation here knows {who} or has invited it. Ask an admin for an invitation."
        )
    if name is None and len(found) == 1:
        return found[0]
    for organization in found:
        if organization.name == name:
            return organization
    names = ", ".join(sorted(organization.name for organization in found))
    raise ConflictError(f"Say which organisation you log in to: you are expected in {names}.")


def _user_of(session: Session, identity: Identity, origin: Origin) -> User:
    """The user that the identity is: known by it, else by its verified address, else invited."""
    known = session.scalars(select(User).where(_is(identity)).with_for_update()).all()
    for user in known:
        if user.subject is not None:
            return user
    for user in known:
        user.issuer, user.subject = identity.issuer, identity.subject
        return user
    assert identity.email is not None
    invitation = session.scalars(select(Invitation).where(*_open(identity.email)).with_for_update()).first()
    if invitation is None:
        raise ConflictError("The invitation was accepted or taken back just now. Log in again.")
    user = invitations.take_in(session, invitation, identity.name or identity.email, origin)
    user.issuer, user.subject = identity.issuer, identity.subject
    return user


def _is(identity: Identity) -> ColumnElement[bool]:
    by_subject = (User.issuer == identity.issuer) & (User.subject == identity.subject)
    by_email = (User.email == identity.email) & User.subject.is_(None)
    return User.removed_at.is_(None) & (by_subject if identity.email is None else or_(by_subject, by_email))


def _open(email: str) -> tuple[ColumnElement[bool], ...]:
    return (
        Invitation.email == email,
        Invitation.accepted_at.is_(None),
        Invitation.revoked_at.is_(None),
        Invitation.expires_at > func.now(),
    )
