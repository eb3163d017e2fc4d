"""Reading the audit log: filtered, in pages, and whole."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Engine, or_, select
from sqlalchemy.orm import Session

from zhub.database.pages import Page, created_since, read_page
from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError
from zhub.models import AuditEvent
from zhub.suggestions import did_you_mean
from zhub.tenancy.audit import ACTIONS

EXPORTED_AT_ONCE = 500


@dataclass(frozen=True)
class AuditFilter:
    """Which events; what is empty or None does not matter. ``actors`` are ids of users and keys, and names."""

    actions: Sequence[str] = ()
    actor_ids: Sequence[uuid.UUID] = ()
    actors: Sequence[str] = ()
    targets: Sequence[str] = ()
    project_ids: Sequence[uuid.UUID] = ()
    since: datetime | None = None
    before: datetime | None = None


def list_events(session: Session, wanted: AuditFilter, page: Page) -> tuple[list[AuditEvent], bool]:
    """The organisation's events. Raises InvalidRequestError for an action that there is none of."""
    return read_page(session, select(AuditEvent).where(*_conditions(wanted)), AuditEvent.id, page)


def export(engine: Engine, org_id: uuid.UUID, wanted: AuditFilter) -> Iterator[list[AuditEvent]]:
    """All events, oldest first, some at a time, each time in a transaction of its own."""
    after: uuid.UUID | None = None
    while True:
        with tenant_session(engine, org_id) as session:
            page = Page(EXPORTED_AT_ONCE, after, oldest_first=True)
            events, has_more = list_events(session, wanted, page)
        yield events
        if not has_more:
            return
        after = events[-1].id


def _conditions(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    for action in wanted.actions:
        if action not in ACTIONS:
            message = f"No action '{action}' is audited.{did_you_mean(action, ACTIONS)} Known: {', '.join(ACTIONS)}."
            raise InvalidRequestError(message, param="event_types")
    conditions: list[ColumnElement[bool]] = []
    if wanted.actions:
        conditions.append(AuditEvent.action.in_(wanted.actions))
    if wanted.actor_ids:
        conditions.append(or_(AuditEvent.user_id.in_(wanted.actor_ids), AuditEvent.key_id.in_(wanted.actor_ids)))
    if wanted.actors:
        conditions.append(AuditEvent.actor.in_(wanted.actors))
    if wanted.targets:
        conditions.append(AuditEvent.target.in_(wanted.targets))
    if wanted.project_ids:
        conditions.append(AuditEvent.project_id.in_(wanted.project_ids))
    if wanted.since is not None:
        conditions.append(created_since(AuditEvent.created_at, AuditEvent.id, wanted.since))
    if wanted.before is not None:
        conditions.append(AuditEvent.created_at < wanted.before)
    return conditions
