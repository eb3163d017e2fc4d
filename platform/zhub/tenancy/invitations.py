"""Invitations: how somebody comes into an organisation.

The token of an invitation is shown once, to who invites, and stored as its hash. Whoever shows it is taken in with the
address, the role and the projects that the invitation says; so is who proves by login to have the address.
"""

import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from zhub.database.pages import Page, read_page
from zhub.database.sessions import invitation_session, now, tenant_session
from zhub.errors import AuthenticationError, ConflictError, InvalidRequestError, NotFoundError
from zhub.ids import public_id
from zhub.models import ApiKey, Invitation, Project, User
from zhub.tenancy import audit, keys, members, organizations
from zhub.tenancy.audit import Actor
from zhub.tenancy.keys import Caller, Origin
from zhub.tenancy.scopes import TENANT_SCOPES, Role

LASTS = timedelta(days=7)
TOKEN_PATTERN = re.compile(r"zhub-invitation_[A-Za-z0-9_-]{43}")
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")


def invite(
    session: Session, caller: Caller, email: str, role: Role, projects: Mapping[uuid.UUID, Role]
) -> tuple[Invitation, str]:
    """Invite an address in place of an earlier invitation of it; return it and its token, never to be had again.

    Raises:
        InvalidRequestError: no address.
        RoleTooLowError: the role is above the caller's.
        NotFoundError: the organisation has no such project.
        ConflictError: who has the address is a member already.
    """
    members.check_rank(caller, role)
    address = read_email(email)
    for project_id in projects:
        organizations.get_project(session, project_id)
    if session.scalar(select(User.id).where(User.email == address, User.removed_at.is_(None))) is not None:
        raise ConflictError(f"{address} is a member of the organisation already.")
    pending = (Invitation.accepted_at.is_(None), Invitation.revoked_at.is_(None))
    session.execute(update(Invitation).where(Invitation.email == address, *pending).values(revoked_at=func.now()))
    token = f"zhub-invitation_{secrets.token_urlsafe(32)}"
    row = Invitation(
        org_id=caller.org_id,
        email=address,
        role=role.word,
        projects=[{"project_id": str(place), "role": given.word} for place, given in projects.items()],
        token_hash=hash_token(token),
        invited_by=audit.actor_of(caller).name,
        expires_at=now(session) + LASTS,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    after = {"email": address, "role": role.word, "projects": row.projects}
    audit.record(session, caller, "invite.sent", public_id("invitation", row.id), after=after)
    return row, token


def list_invitations(session: Session, page: Page) -> tuple[list[Invitation], bool]:
    """All that were not taken back: pending, accepted, expired."""
    return read_page(session, select(Invitation).where(Invitation.revoked_at.is_(None)), Invitation.id, page)


def get_invitation(session: Session, invitation_id: uuid.UUID) -> Invitation:
    """Raises NotFoundError."""
    row = session.get(Invitation, invitation_id)
    if row is None or row.revoked_at is not None:
        raise NotFoundError("invitation", public_id("invitation", invitation_id))
    return row


def revoke(session: Session, caller: Caller, row: Invitation) -> None:
    """Take an invitation back. Raises ConflictError: it was accepted."""
    if row.accepted_at is not None:
        raise ConflictError(f"{row.email} accepted the invitation. Remove the member instead.")
    row.revoked_at = func.now()
    before = {"email": row.email, "role": row.role}
    audit.record(session, caller, "invite.deleted", public_id("invitation", row.id), before=before)


def accept_token(engine: Engine, token: str, name: str, *, secret_key: str, origin: Origin) -> tuple[User, ApiKey, str]:
    """Take in who shows a token; return the new user, and their first key with its secret.

    Raises:
        AuthenticationError: no such invitation, or it was accepted, taken back, or is too old.
        ConflictError: who has its address has become a member otherwise.
    """
    wrong = AuthenticationError("There is no such invitation, or it was accepted or taken back. Ask for another one.")
    if not TOKEN_PATTERN.fullmatch(token):
        raise wrong
    with invitation_session(engine, hash_token(token)) as session:
        found = session.scalar(select(Invitation))
    if found is None:
        raise wrong
    with tenant_session(engine, found.org_id) as session:
        row = session.scalar(select(Invitation).where(Invitation.id == found.id).with_for_update())
        if row is None or row.accepted_at is not None or row.revoked_at is not None:
            raise wrong
        if row.expires_at <= now(session):
            raise AuthenticationError(
                f"The invitation expired on {row.expires_at:%Y-%m-%d at %H:%M %Z}. Ask for another one."
            )
        user = take_in(session, row, name, origin)
        key_row, key = personal_key(session, user, "first key", lasts=None, secret_key=secret_key)
        audit.add(
            session,
            row.org_id,
            Actor(row.email, key_row.id, user.id, origin),
            "api_key.created",
            public_id("API key", key_row.id),
            project_id=key_row.project_id,
            after={"name": key_row.name},
        )
    return user, key_row, key


def take_in(session: Session, row: Invitation, name: str, origin: Origin) -> User:
    """Make the user that an invitation is for, with its roles. The row is locked.

    Raises:
        ConflictError: who has its address has become a member otherwise.
    """
    if session.scalar(select(User.id).where(User.email == row.email, User.removed_at.is_(None))) is not None:
        raise ConflictError(f"{row.email} is a member of the organisation already.")
    user = User(org_id=row.org_id, kind="person", name=name, email=row.email, role=row.role)
    session.add(user)
    session.flush()
    row.accepted_at, row.user_id = func.now(), user.id
    actor = Actor(row.email, None, user.id, origin)
    audit.add(session, row.org_id, actor, "invite.accepted", public_id("invitation", row.id))
    added = {"email": row.email, "role": row.role}
    audit.add(session, row.org_id, actor, "user.added", public_id("user", user.id), after=added)
    caller = Caller(keys.NOWHERE, row.org_id, keys.NOWHERE, "", frozenset(), user_id=user.id, user=row.email)
    for given in row.projects:
        project = organizations.get_project(session, uuid.UUID(given["project_id"]))
        members.give_project_role(session, caller, project, user, Role.of(given["role"]))
    session.refresh(user)
    return user


def personal_key(
    session: Session,
    user: User,
    name: str,
    *,
    lasts: timedelta | None,
    secret_key: str,
    project_name: str | None = None,
) -> tuple[ApiKey, str]:
    """A key for all that a person may do, in a project of theirs: the one that is named, else the oldest.

    Raises:
        NotFoundError: they have no role in a project of this name.
    """
    project = _project_of(session, user, project_name)
    if project is None and project_name is not None:
        raise NotFoundError("project", project_name, "Or you have no role in it.")
    row = ApiKey(org_id=user.org_id, project_id=None if project is None else project.id, user_id=user.id, name=name)
    row.expires_at = None if lasts is None else now(session) + lasts
    made, key = keys.add_key(session, row, TENANT_SCOPES, secret_key)
    session.refresh(made)
    return made, key


def read_email(text: str) -> str:
    """An address in small letters. Raises InvalidRequestError."""
    address = text.strip().lower()
    if not EMAIL.fullmatch(address):
        raise InvalidRequestError(f"'{text}' is no e-mail address: expected somebody@example.com.", param="email")
    return address


def hash_token(token: str) -> str:
    # Without a secret key: there is no guessing 256 bits.
    return hashlib.sha256(token.encode()).hexdigest()


def _project_of(session: Session, user: User, name: str | None) -> Project | None:
    projects = select(Project).where(Project.archived_at.is_(None)).order_by(Project.id)
    if name is not None:
        projects = projects.where(Project.name == name)
    everywhere = Role.of(user.role) >= Role.VIEWER
    for project in session.scalars(projects):
        if everywhere or keys.role_in(session, user.id, project.id) is not None:
            return project
    return None
