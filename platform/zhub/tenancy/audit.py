"""The audit log: who did what to what, from where, with what before and after; rows that nobody changes or deletes.

A row is written in the transaction of the act itself, so that there is never one without the other.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from zhub.models import AuditEvent
from zhub.tenancy.keys import NOWHERE, Caller, Origin

MAX_CHARACTERS = 300

ACTIONS: Final = (
    "organization.created", "organization.suspended", "organization.resumed",
    "project.created", "project.archived", "project.updated",
    "user.added", "user.updated", "user.deleted",
    "role.assignment.created", "role.assignment.deleted",
    "invite.sent", "invite.accepted", "invite.deleted",
    "service_account.created", "service_account.updated", "service_account.deleted",
    "api_key.created", "api_key.updated", "api_key.rotated", "api_key.deleted",
    "login.succeeded", "logout.succeeded",
    "alias.moved", "alias.deleted", "alias.protected", "alias.unprotected",
    "alias_request.created", "alias_request.decided", "promotion.requested", "promotion.cancelled",
    "expert.visibility_changed", "grant.given", "grant.requested", "grant.approved", "grant.denied", "grant.ended",
    "release.created", "release.deleted", "shadow.started", "shadow.ended",
    "expert.updated", "expert.state_changed", "expert.deleted", "signing_key.rotated",
    "file.deleted", "feedback.deleted", "completion.deleted",
    "schedule.created", "schedule.updated", "schedule.deleted",
    "webhook_endpoint.created", "webhook_endpoint.updated", "webhook_endpoint.rotated", "webhook_endpoint.deleted",
)  # fmt: skip
"""Every action that is audited. Those that the OpenAI dialect has too are named as there."""


@dataclass(frozen=True)
class Actor:
    """Who acted: by a key, or a person who proved to be it, or a part of the platform."""

    name: str
    key_id: uuid.UUID | None = None
    user_id: uuid.UUID | None = None
    origin: Origin = Origin()


OPERATOR = "operator"


def actor_of(caller: Caller) -> Actor:
    by_token = caller.key_id == NOWHERE
    name = caller.user or (OPERATOR if by_token else f"key of {caller.project or 'the organisation'}")
    return Actor(name, None if by_token else caller.key_id, caller.user_id, caller.origin)


def record(
    session: Session,
    by: Caller,
    action: str,
    target: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add what the caller did in its project, or in its organisation. The caller's transaction commits it.

    Args:
        action: one of ACTIONS.
        target: the public id, or the name, of what was changed.
        before, after: what changed of it, as JSON; never a secret.
    """
    project_id = None if by.project_id == NOWHERE else by.project_id
    add(session, by.org_id, actor_of(by), action, target, project_id=project_id, before=before, after=after)


def add(
    session: Session,
    org_id: uuid.UUID,
    actor: Actor,
    action: str,
    target: str,
    *,
    project_id: uuid.UUID | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """As ``record``, for whom no key has identified, and for what is done in another project than the key's."""
    assert action in ACTIONS, action
    session.add(
        AuditEvent(
            org_id=org_id,
            project_id=project_id,
            action=action,
            target=target[:MAX_CHARACTERS],
            actor=actor.name[:MAX_CHARACTERS],
            key_id=actor.key_id,
            user_id=actor.user_id,
            address=actor.origin.address,
            user_agent=(actor.origin.user_agent or "")[:MAX_CHARACTERS] or None,
            before=dict(before) if before is not None else None,
            after=dict(after) if after is not None else None,
        )
    )
