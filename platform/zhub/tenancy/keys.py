"""API keys, and the caller that a key stands for.

A key looks like ``zhub_<12 hex>_<43 characters>``: the first part finds the row, the whole is proved against an
HMAC-SHA-256 keyed with ``ZHUB_SECRET_KEY``. It is shown once, when it is made, and stored nowhere.
"""

import hashlib
import hmac
import re
import secrets
import uuid
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from zhub.database.sessions import key_session, tenant_session
from zhub.errors import AuthenticationError, InvalidRequestError, PermissionDeniedError
from zhub.models import ApiKey, Project

TENANT_SCOPES = (
    "files:read", "files:write", "jobs:read", "jobs:write", "models:read", "models:write", "chat", "base_models:write",
    "webhooks:read", "webhooks:write", "project:write", "grants:write",
)  # fmt: skip
"""What a tenant's key may do by default.

``base_models:write`` lets it add base models of its own organisation, ``project:write`` say what its project keeps of
its users' requests, ``grants:write`` share its project's experts with others, and ask for theirs.
"""
OPERATOR_SCOPE = "platform_base_models:write"
"""Base models for every organisation: an operator's right."""
SCOPES = (*TENANT_SCOPES, OPERATOR_SCOPE)
KEY_PATTERN = re.compile(r"zhub_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
LAST_USED_GRANULARITY = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """Who is asking: established once for each request, from its key."""

    key_id: uuid.UUID
    org_id: uuid.UUID
    project_id: uuid.UUID
    project: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raise PermissionDeniedError unless the key has ``scope``."""
        if scope not in self.scopes:
            raise PermissionDeniedError(scope)


def create_api_key(
    session: Session, project: Project, name: str, *, scopes: tuple[str, ...], secret_key: str
) -> tuple[ApiKey, str]:
    """Return the row and the key itself, which is never to be had again."""
    unknown = set(scopes) - set(SCOPES)
    if unknown:
        raise InvalidRequestError(f"Unknown scopes {sorted(unknown)}. Known: {', '.join(SCOPES)}.", param="scopes")
    prefix = secrets.token_hex(6)
    key = f"zhub_{prefix}_{secrets.token_urlsafe(32)}"
    row = ApiKey(
        org_id=project.org_id,
        project_id=project.id,
        name=name,
        prefix=prefix,
        hash=hash_key(key, secret_key),
        scopes=list(scopes),
    )
    session.add(row)
    session.flush()
    return row, key


def authenticate(engine: Engine, key: str, *, secret_key: str) -> Caller:
    """Return who a key speaks for.

    Raises:
        AuthenticationError: unknown, revoked or expired; the message does not say which of the first two.
    """
    match = KEY_PATTERN.fullmatch(key)
    if match is None:
        raise AuthenticationError("Incorrect API key provided: it should look like 'zhub_…'.")
    with key_session(engine, match[1]) as session:
        # The database's clock, because that of a process may be wrong.
        found = session.execute(select(ApiKey, func.now()).where(ApiKey.prefix == match[1])).one_or_none()
        known = found is not None and hmac.compare_digest(found[0].hash, hash_key(key, secret_key))
        if found is None or not known or found[0].revoked_at:
            raise AuthenticationError(f"Incorrect API key provided: zhub_{match[1]}_… is not known, or was revoked.")
        row, now = found
        if row.expires_at is not None and row.expires_at <= now:
            raise AuthenticationError(
                f"The API key zhub_{match[1]}_… expired on {row.expires_at:%Y-%m-%d at %H:%M %Z}."
            )
    with tenant_session(engine, row.org_id) as session:
        project = session.scalars(select(Project).where(Project.id == row.project_id)).one()
        if row.last_used_at is None or now - row.last_used_at > LAST_USED_GRANULARITY:
            session.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now))
        return Caller(row.id, row.org_id, project.id, project.name, frozenset(row.scopes))


def hash_key(key: str, secret_key: str) -> str:
    return hmac.new(secret_key.encode(), key.encode(), hashlib.sha256).hexdigest()
