"""Answers about organisations, projects, members, invitations, keys and the audit log."""

from typing import Any

from zhub.client.wire.answer import Answer


class OrganizationRecord(Answer):
    """An organisation, as an operator sees it. ``invitation``: of its first owner, where it was just made."""

    id: str
    name: str
    created_at: int
    status: str
    invitation: "InvitationRecord | None" = None


class ProjectRecord(Answer):
    id: str
    name: str
    created_at: int
    status: str


class MemberRecord(Answer):
    """Somebody with a role, in the organisation or in a project."""

    id: str
    name: str
    email: str
    role: str
    added_at: int


class AccountRecord(Answer):
    """A service account. ``api_key``: its first, where it was just made."""

    id: str
    name: str
    role: str
    created_at: int
    api_key: "KeyRecord | None" = None


class InvitationRecord(Answer):
    """An invitation. ``token`` is given only when it was just made."""

    id: str
    email: str
    role: str
    projects: list[dict[str, str]]
    status: str
    invited_by: str
    expires_at: int
    token: str | None = None


class KeyRecord(Answer):
    """A key. ``value`` is given only when it was just made; what a new service account's key lacks is None."""

    id: str
    name: str
    created_at: int | None = None
    redacted_value: str | None = None
    scopes: list[str] = []
    last_used_at: int | None = None
    expires_at: int | None = None
    successor: str | None = None
    owner: dict[str, Any] | None = None
    project_id: str | None = None
    value: str | None = None


class Named(Answer):
    id: str
    name: str


class MeUser(Named):
    """``role`` is that in the organisation, ``project_role`` what was given in the key's project."""

    type: str
    email: str | None
    role: str
    project_role: str | None


class Me(Answer):
    """Whom a key stands for, and what it may do."""

    key_id: str | None
    organization: Named | None
    project: Named | None
    user: MeUser | None
    scopes: list[str]


class Accepted(Answer):
    """A new member, and their first key."""

    user: MemberRecord
    api_key: KeyRecord


class LoginProvider(Answer):
    """By which OpenID provider people log in."""

    issuer: str
    client_id: str


class Login(Answer):
    """A login, and its key."""

    organization: str
    user: MemberRecord
    api_key: KeyRecord


class AuditRecord(Answer):
    """One act: who, what, on what, from where, with what before and after."""

    id: str
    type: str
    effective_at: int
    actor: dict[str, Any]
    project: dict[str, Any] | None
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    address: str | None
    user_agent: str | None
