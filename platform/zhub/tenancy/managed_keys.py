"""Keys that are made, changed, rotated and revoked by who holds one already.

Nobody makes a key that may do more than they may. A key may be somebody's, and does what they may do from then on.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from zhub.database.pages import Page, read_page
from zhub.database.sessions import now
from zhub.errors import ConflictError, NotFoundError, PermissionDeniedError
from zhub.ids import public_id
from zhub.models import ApiKey, Project, User
from zhub.tenancy import audit, keys
from zhub.tenancy.keys import Caller, scopes_in
from zhub.tenancy.scopes import MANAGING, ORGANIZATION_SCOPES, PROJECT_SCOPES

ADMIN_KEY_SCOPES = (*ORGANIZATION_SCOPES, *sorted(MANAGING))
DEFAULT_GRACE = timedelta(days=1)


@dataclass(frozen=True)
class NewKey:
    """What a key shall be. ``scopes`` None: all that its maker may give."""

    name: str
    scopes: Sequence[str] | None = None
    lasts: timedelta | None = None


def make_key(
    session: Session, caller: Caller, project: Project, wanted: NewKey, *, owner: User | None, secret_key: str
) -> tuple[ApiKey, str]:
    """Make a key of a project; return it and its secret, which is never to be had again.

    Args:
        owner: whose it is; None: the project's.

    Raises:
        InvalidRequestError: a scope that there is none of.
        PermissionDeniedError: one that the caller cannot give.
    """
    grantable = _grantable(session, caller, project.id)
    if owner is not None and owner.kind == "service_account":
        grantable &= frozenset(PROJECT_SCOPES)  # it has no role but in its project
    scopes = sorted(grantable) if wanted.scopes is None else keys.checked_scopes(wanted.scopes)
    _check_grantable(scopes, grantable)
    row = ApiKey(org_id=project.org_id, project_id=project.id, user_id=None if owner is None else owner.id)
    return _make(session, caller, row, wanted, scopes, secret_key)


def make_admin_key(session: Session, caller: Caller, wanted: NewKey, *, secret_key: str) -> tuple[ApiKey, str]:
    """Make a key of the caller's organisation, which manages it, and reaches no project's rows."""
    scopes = [scope for scope in ADMIN_KEY_SCOPES if scope in MANAGING or scope in caller.scopes]
    row = ApiKey(org_id=caller.org_id, user_id=caller.user_id)
    return _make(session, caller, row, wanted, scopes, secret_key)


def list_keys(session: Session, project_id: uuid.UUID | None, page: Page) -> tuple[list[ApiKey], bool]:
    """The keys of a project, or those of the organisation itself, that were not revoked."""
    return read_page(session, _of(project_id).where(ApiKey.revoked_at.is_(None)), ApiKey.id, page)


def get_key(session: Session, project_id: uuid.UUID | None, key_id: uuid.UUID) -> ApiKey:
    """A key that was not revoked, locked until the transaction ends. Raises NotFoundError."""
    row = session.scalar(_of(project_id).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).with_for_update())
    if row is None:
        raise NotFoundError("API key", public_id("API key", key_id))
    return row


def require_control(session: Session, caller: Caller, row: ApiKey) -> None:
    """Raise PermissionDeniedError unless the key is the caller's own, or the caller manages the keys of its project."""
    if row.user_id is not None and row.user_id == caller.user_id:
        return
    if row.project_id is None:
        caller.require("organization:write")
    elif "keys:write" not in scopes_in(session, caller, row.project_id):
        raise PermissionDeniedError("keys:write", message="This key is not yours, and only an admin changes others'.")


def change_key(
    session: Session,
    caller: Caller,
    row: ApiKey,
    *,
    scopes: Sequence[str] | None = None,
    lasts: timedelta | None = None,
) -> None:
    """Give a key of a project other scopes, or another expiry, counted from now.

    Raises:
        PermissionDeniedError: a scope that the caller cannot give.
    """
    before = described(row)
    if scopes is not None:
        assert row.project_id is not None
        added = [scope for scope in keys.checked_scopes(scopes) if scope not in row.scopes]
        _check_grantable(added, _grantable(session, caller, row.project_id))
        row.scopes = keys.checked_scopes(scopes)
    if lasts is not None:
        row.expires_at = now(session) + lasts
    _record(session, caller, row, "api_key.updated", before=before, after=described(row))


def rotate_key(
    session: Session, caller: Caller, row: ApiKey, *, grace: timedelta, secret_key: str
) -> tuple[ApiKey, str]:
    """Make the key's successor, with its name, owner, scopes and expiry; return it and its secret.

    Args:
        row: locked, see ``get_key``.
        grace: for how long the old one is still valid; zero: it is revoked.

    Raises:
        ConflictError: it was rotated before.
        PermissionDeniedError: its secret would let the caller do more than it may.
    """
    _require_reach(session, caller, row)
    if row.successor_id is not None:
        raise ConflictError(
            f"{public_id('API key', row.id)} was rotated before: {public_id('API key', row.successor_id)} is in its "
            "place. Rotate that one."
        )
    fields = {"project_id": row.project_id, "user_id": row.user_id, "name": row.name, "expires_at": row.expires_at}
    successor, key = keys.add_key(session, ApiKey(org_id=row.org_id, **fields), row.scopes, secret_key)
    row.successor_id = successor.id
    ends = now(session) + grace
    if grace:
        row.expires_at = ends if row.expires_at is None else min(ends, row.expires_at)
    else:
        row.revoked_at = ends
    after = {"successor": public_id("API key", successor.id), "valid_until": int(ends.timestamp())}
    _record(session, caller, row, "api_key.rotated", before=described(row), after=after)
    session.flush()
    session.refresh(successor)
    return successor, key


def revoke_key(session: Session, caller: Caller, row: ApiKey) -> None:
    """Refuse the key from now on, everywhere."""
    row.revoked_at = func.now()
    _record(session, caller, row, "api_key.deleted", before=described(row))


def described(row: ApiKey) -> dict[str, object]:
    """What the audit log says of a key: nothing of its secret."""
    ends = row.expires_at
    return {
        "name": row.name,
        "key": redacted(row),
        "scopes": row.scopes,
        "expires_at": int(ends.astimezone(UTC).timestamp()) if isinstance(ends, datetime) else None,
    }


def redacted(row: ApiKey) -> str:
    return f"zhub_{row.prefix}_…"


def _make(
    session: Session, caller: Caller, row: ApiKey, wanted: NewKey, scopes: Sequence[str], secret_key: str
) -> tuple[ApiKey, str]:
    row.name = wanted.name
    row.expires_at = None if wanted.lasts is None else now(session) + wanted.lasts
    made, key = keys.add_key(session, row, scopes, secret_key)
    _record(session, caller, made, "api_key.created", after=described(made))
    session.flush()
    session.refresh(made)
    return made, key


def _of(project_id: uuid.UUID | None) -> Select[ApiKey]:
    place = ApiKey.project_id.is_(None) if project_id is None else ApiKey.project_id == project_id
    return select(ApiKey).where(place)


def _grantable(session: Session, caller: Caller, project_id: uuid.UUID) -> frozenset[str]:
    """What the caller may let a key of the project do: what it may do there, or all where it gives roles as well."""
    own = scopes_in(session, caller, project_id)
    return own | frozenset(PROJECT_SCOPES) if "organization:write" in caller.scopes else own


def _check_grantable(scopes: Sequence[str], grantable: frozenset[str]) -> None:
    for scope in scopes:
        if scope not in grantable:
            raise PermissionDeniedError(
                scope, message=f"You cannot give a key the scope '{scope}': you do not have it in this project."
            )


def _require_reach(session: Session, caller: Caller, row: ApiKey) -> None:
    """Refuse to hand out the secret of a key that may do what the caller's may not: the key of somebody else, too."""
    owner = None if row.user_id is None else session.get_one(User, row.user_id)
    if owner is not None and owner.kind == "person" and owner.id != caller.user_id:
        message = "A key is rotated by whose it is, and by nobody else. Revoke it instead."
        raise PermissionDeniedError("keys:write", message=message)
    assert row.project_id is not None
    own = owner is not None and owner.id == caller.user_id
    reach = caller.granted if own else _grantable(session, caller, row.project_id)
    for scope in row.scopes:
        if scope not in reach:
            message = f"The key has the scope '{scope}', which yours does not have. Rotate it with one that has."
            raise PermissionDeniedError(scope, message=message)


def _record(
    session: Session,
    caller: Caller,
    row: ApiKey,
    action: str,
    *,
    before: dict[str, object] | None = None,
    after: dict[str, object] | None = None,
) -> None:
    target = public_id("API key", row.id)
    actor = audit.actor_of(caller)
    audit.add(session, row.org_id, actor, action, target, project_id=row.project_id, before=before, after=after)
