"""API keys, and the caller that a key stands for.

A key looks like ``zhub_<12 hex>_<43 characters>``: the first part finds the row, the whole is proved against an
HMAC-SHA-256 keyed with ``ZHUB_SECRET_KEY``. It is shown once, when it is made, and stored nowhere.

What a key may do is decided anew for each request: its own scopes, and of these what its owner's roles allow then.
"""

import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine, and_, func, select, update
from sqlalchemy.orm import Session

from zhub.database.sessions import key_session, tenant_session
from zhub.errors import AccessEndedError, AuthenticationError, InvalidRequestError, PermissionDeniedError
from zhub.models import ApiKey, Organization, Project, ProjectMember, User
from zhub.suggestions import did_you_mean
from zhub.tenancy.scopes import MANAGING, PROJECT_SCOPES, SCOPES, Role, scopes_of

KEY_PATTERN = re.compile(r"zhub_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
LAST_USED_GRANULARITY = timedelta(minutes=1)
NOWHERE = uuid.UUID(int=0)
"""The project of a key that is an organisation's: no row has it."""


@dataclass(frozen=True)
class Origin:
    """Where a request comes from."""

    address: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True)
class Caller:
    """Who is asking: established once for each request, from its key."""

    key_id: uuid.UUID
    org_id: uuid.UUID
    project_id: uuid.UUID
    project: str
    scopes: frozenset[str]
    """What it may do in its project and, those of an organisation, in all of it."""
    granted: frozenset[str] = frozenset()
    """The scopes of the key itself, whatever its owner's roles are."""
    user_id: uuid.UUID | None = None
    user: str | None = None
    """The owner's e-mail address, or the service account's name."""
    role: Role | None = None
    """The owner's in the organisation."""
    origin: Origin = Origin()

    @property
    def rank(self) -> Role | None:
        """As what it gives roles in the organisation: its owner's, or an owner's where the key is nobody's."""
        return Role.OWNER if self.user_id is None else self.role

    def require(self, scope: str) -> None:
        """Raise PermissionDeniedError unless the caller has ``scope``."""
        if scope in self.scopes:
            return
        if scope not in self.granted or self.user_id is None:
            raise PermissionDeniedError(scope)
        if self.project_id == NOWHERE and scope in PROJECT_SCOPES:
            message = f"This API key is of no project, and '{scope}' is a right in one. Use a key of a project."
        else:
            message = f"The role of {self.user} does not have the right '{scope}' here. Ask an admin for another role."
        raise PermissionDeniedError(scope, message=message)


def create_api_key(
    session: Session,
    project: Project,
    name: str,
    *,
    scopes: Sequence[str],
    secret_key: str,
    user_id: uuid.UUID | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Return the row and the key itself, which is never to be had again."""
    row = ApiKey(org_id=project.org_id, project_id=project.id, user_id=user_id, name=name, expires_at=expires_at)
    return add_key(session, row, scopes, secret_key)


def add_key(session: Session, row: ApiKey, scopes: Sequence[str], secret_key: str) -> tuple[ApiKey, str]:
    """Give a new row its scopes and its secret; return it and the key itself.

    Raises:
        InvalidRequestError: a scope that there is none of.
    """
    row.scopes = checked_scopes(scopes)
    row.prefix = secrets.token_hex(6)
    key = f"zhub_{row.prefix}_{secrets.token_urlsafe(32)}"
    row.hash, row.pepper = hash_key(key, secret_key), pepper_of(secret_key)
    session.add(row)
    session.flush()
    return row, key


def checked_scopes(scopes: Sequence[str]) -> list[str]:
    """The scopes, once each. Raises InvalidRequestError for one that there is none of."""
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidRequestError(
                f"There is no scope '{scope}'.{did_you_mean(scope, SCOPES)} Known: {', '.join(SCOPES)}.", param="scopes"
            )
    return list(dict.fromkeys(scopes))


def authenticate(engine: Engine, key: str, *, secret_key: str, former_secret_keys: Sequence[str] = ()) -> Caller:
    """Return who a key speaks for. A key that a former secret key proves is hashed anew with the present one.

    Raises:
        AuthenticationError: unknown, revoked, rotated or expired, or its owner is gone; the message does not say which
            of the first two.
        AccessEndedError: its organisation is suspended, or its project archived.
    """
    match = KEY_PATTERN.fullmatch(key)
    if match is None:
        raise AuthenticationError("Incorrect API key provided: it should look like 'zhub_…'.")
    shown = f"zhub_{match[1]}_…"
    with key_session(engine, match[1]) as session:
        # The database's clock, because that of a process may be wrong.
        found = session.execute(select(ApiKey, func.now()).where(ApiKey.prefix == match[1])).one_or_none()
    if found is None or not _is_proved(found[0], key, (secret_key, *former_secret_keys)):
        raise AuthenticationError(_unknown(shown))
    row, now = found
    _check_is_valid(row, now, shown)
    with tenant_session(engine, row.org_id) as session:
        changed: dict[str, object] = {}
        if row.last_used_at is None or now - row.last_used_at > LAST_USED_GRANULARITY:
            changed = {"last_used_at": now}
        if row.pepper != pepper_of(secret_key) and _is_proved(row, key, former_secret_keys):
            changed |= {"hash": hash_key(key, secret_key), "pepper": pepper_of(secret_key)}
        if changed:
            session.execute(update(ApiKey).where(ApiKey.id == row.id, ApiKey.hash == row.hash).values(**changed))
        return _caller_of(session, row, shown)


def hash_key(key: str, secret_key: str) -> str:
    return hmac.new(secret_key.encode(), key.encode(), hashlib.sha256).hexdigest()


def pepper_of(secret_key: str) -> str:
    """The name of a secret key, by which rows say what their hash is keyed with: too short to find the key by."""
    return hashlib.sha256(b"zhub pepper " + secret_key.encode()).hexdigest()[:8]


def scopes_in(session: Session, caller: Caller, project_id: uuid.UUID) -> frozenset[str]:
    """What the caller may do in a project of its organisation; nothing in one that it has no role in."""
    if caller.user_id is None:
        own = caller.scopes if project_id == caller.project_id else frozenset()
        return own | (MANAGING if "organization:write" in caller.scopes else frozenset())
    return caller.granted & scopes_of(caller.role, role_in(session, caller.user_id, project_id))


def role_in(session: Session, user_id: uuid.UUID, project_id: uuid.UUID) -> Role | None:
    """The role that a user was given in a project; None: none there."""
    word = session.scalar(
        select(ProjectMember.role).where(
            ProjectMember.project_id == project_id,
            ProjectMember.user_id == user_id,
            ProjectMember.removed_at.is_(None),
        )
    )
    return None if word is None else Role.of(word)


def _is_proved(row: ApiKey, key: str, secret_keys: Sequence[str]) -> bool:
    """Whether one of the secret keys proves the key: that which the row names, or any where it names none."""
    candidates = [secret for secret in secret_keys if row.pepper in (None, pepper_of(secret))]
    return any(hmac.compare_digest(row.hash, hash_key(key, secret)) for secret in candidates)


def _check_is_valid(row: ApiKey, now: datetime, shown: str) -> None:
    expired = row.expires_at is not None and row.expires_at <= now
    if row.successor_id is not None and (row.revoked_at or expired):
        raise AuthenticationError(f"The API key {shown} was rotated, and is no longer valid. Use the one in its place.")
    if row.revoked_at:
        raise AuthenticationError(_unknown(shown))
    if row.expires_at is not None and expired:
        raise AuthenticationError(f"The API key {shown} expired on {row.expires_at:%Y-%m-%d at %H:%M %Z}.")


def _caller_of(session: Session, row: ApiKey, shown: str) -> Caller:
    in_project = and_(
        ProjectMember.user_id == row.user_id,
        ProjectMember.project_id == row.project_id,
        ProjectMember.removed_at.is_(None),
    )
    suspended_at, project, user, project_role = session.execute(
        select(Organization.suspended_at, Project, User, ProjectMember.role)
        .select_from(Organization)
        .outerjoin(Project, Project.id == row.project_id)
        .outerjoin(User, User.id == row.user_id)
        .outerjoin(ProjectMember, in_project)
        .where(Organization.id == row.org_id)
    ).one()
    if suspended_at is not None:
        raise AccessEndedError(
            f"Your organisation was suspended on {suspended_at:%Y-%m-%d}. Ask the platform's operator why."
        )
    if project is not None and project.archived_at is not None:
        raise AccessEndedError(f"The project '{project.name}' was archived on {project.archived_at:%Y-%m-%d}.")
    granted = frozenset(row.scopes)
    place = (NOWHERE, "") if project is None else (project.id, project.name)
    scopes = granted if project is not None else granted - frozenset(PROJECT_SCOPES)
    if row.user_id is None:
        return Caller(row.id, row.org_id, *place, scopes, granted)
    if user.removed_at is not None:
        raise AuthenticationError(f"The API key {shown} belongs to somebody who has left the organisation.")
    role = Role.of(user.role)
    allowed = scopes & scopes_of(role, None if project_role is None else Role.of(project_role))
    return Caller(row.id, row.org_id, *place, allowed, granted, user.id, user.email or user.name, role)


def _unknown(shown: str) -> str:
    return f"Incorrect API key provided: {shown} is not known, or was revoked."
