"""``/v1/organization/audit_logs``: who did what, in the OpenAI dialect, and all of it as JSON Lines or CSV."""

import csv
import io
import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from zhub.database.sessions import tenant_session
from zhub.errors import NotFoundError
from zhub.ids import parse_id, public_id
from zhub.models import AuditEvent
from zhub.tenancy import audit_log
from zhub.tenancy.audit_log import AuditFilter
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import Order, PageLimit, moment, page, wanted_page
from zhub_api.rights import needs
from zhub_api.routes.administration.objects import project_names, seconds
from zhub_api.streams import JSON_LINES, answering

router = APIRouter(prefix="/v1/organization/audit_logs")

CSV = "text/csv"
COLUMNS = (
    "id", "effective_at", "type", "target", "actor", "user_id", "key_id", "project", "address", "user_agent", "before",
    "after",
)  # fmt: skip
LATEST = 253402300799
Names = Annotated[list[str], Query(max_length=100)]


def in_brackets(name: str) -> Any:
    """The form in which the dialect's client sends a list."""
    return Query(alias=f"{name}[]", max_length=100)


def bound(name: str) -> Any:
    return Query(alias=f"effective_at[{name}]", ge=0, le=LATEST, description="A Unix time.")


def wanted_events(
    event_types: Names = [],  # noqa: B006  # FastAPI copies it
    event_types_in_brackets: Annotated[list[str], in_brackets("event_types")] = [],  # noqa: B006
    actor_ids: Names = [],  # noqa: B006
    actor_ids_in_brackets: Annotated[list[str], in_brackets("actor_ids")] = [],  # noqa: B006
    actor_emails: Names = [],  # noqa: B006
    actor_emails_in_brackets: Annotated[list[str], in_brackets("actor_emails")] = [],  # noqa: B006
    resource_ids: Names = [],  # noqa: B006
    resource_ids_in_brackets: Annotated[list[str], in_brackets("resource_ids")] = [],  # noqa: B006
    project_ids: Names = [],  # noqa: B006
    project_ids_in_brackets: Annotated[list[str], in_brackets("project_ids")] = [],  # noqa: B006
    since: Annotated[int | None, bound("gte")] = None,
    after_moment: Annotated[int | None, bound("gt")] = None,
    before: Annotated[int | None, bound("lt")] = None,
    until: Annotated[int | None, bound("lte")] = None,
) -> AuditFilter:
    """The events that a request asks for. Moments are whole seconds, as answers have them."""
    first = max((s for s in (since, None if after_moment is None else after_moment + 1) if s is not None), default=None)
    ends = min((s for s in (before, None if until is None else until + 1) if s is not None), default=None)
    return AuditFilter(
        actions=[*event_types, *event_types_in_brackets],
        actor_ids=[_actor_id(name) for name in [*actor_ids, *actor_ids_in_brackets]],
        actors=[*actor_emails, *actor_emails_in_brackets],
        targets=[*resource_ids, *resource_ids_in_brackets],
        project_ids=[parse_id("project", name) for name in [*project_ids, *project_ids_in_brackets]],
        since=moment(first),
        before=None if ends is None else moment(min(ends, LATEST)),
    )


Wanted = Annotated[AuditFilter, Depends(wanted_events)]


@router.get("", dependencies=[needs("audit:read")])
def list_events(
    caller: CallerDep,
    context: ContextDep,
    wanted: Wanted,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "desc",
) -> dict[str, Any]:
    """What was done in the organisation, newest first."""
    place = wanted_page("audit event", after, limit, order)
    with tenant_session(context.engine, caller.org_id) as session:
        events, has_more = audit_log.list_events(session, wanted, place)
        names = project_names(session)
    return page([event_object(event, names) for event in events], has_more=has_more)


@router.get(
    "/export",
    dependencies=[needs("audit:read")],
    response_class=StreamingResponse,
    responses=answering(JSON_LINES),
)
def export_events(
    caller: CallerDep,
    context: ContextDep,
    wanted: Wanted,
    layout: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
) -> StreamingResponse:
    """All events that the request asks for, oldest first, one a line. Not in the dialect."""
    with tenant_session(context.engine, caller.org_id) as session:
        names = project_names(session)
        audit_log.list_events(session, wanted, wanted_page("audit event", None, 1))
    pages = audit_log.export(context.engine, caller.org_id, wanted)
    if layout == "csv":
        return StreamingResponse(_csv(pages, names), media_type=CSV)
    lines = (json.dumps(event_object(event, names), ensure_ascii=True) + "\n" for events in pages for event in events)
    return StreamingResponse(lines, media_type=JSON_LINES)


def event_object(event: AuditEvent, names: Mapping[uuid.UUID, str]) -> dict[str, Any]:
    """An event as the dialect has it, and with what it lacks: the target, before and after, and where from."""
    of_user = None if event.user_id is None else {"id": public_id("user", event.user_id), "email": event.actor}
    key = None if event.key_id is None else {"id": public_id("API key", event.key_id), "type": "user", "user": of_user}
    return {
        "id": public_id("audit event", event.id),
        "object": "organization.audit_log",
        "type": event.action,
        "effective_at": seconds(event.created_at),
        "actor": {
            "name": event.actor,
            "type": "api_key" if key is not None else "session",
            "api_key": key,
            "session": {"user": of_user, "ip_address": event.address},
        },
        "project": None
        if event.project_id is None
        else {"id": public_id("project", event.project_id), "name": names.get(event.project_id)},
        "target": event.target,
        "before": event.before,
        "after": event.after,
        "address": event.address,
        "user_agent": event.user_agent,
        event.action: {"id": event.target, "data": event.after, "changes_requested": event.after},
    }


def _csv(pages: Iterator[list[AuditEvent]], names: Mapping[uuid.UUID, str]) -> Iterator[str]:
    yield _row(COLUMNS)
    for events in pages:
        yield "".join(_row(_cells(event, names)) for event in events)


def _cells(event: AuditEvent, names: Mapping[uuid.UUID, str]) -> tuple[str, ...]:
    return (
        public_id("audit event", event.id),
        _written(event.created_at),
        event.action,
        event.target,
        event.actor,
        "" if event.user_id is None else public_id("user", event.user_id),
        "" if event.key_id is None else public_id("API key", event.key_id),
        "" if event.project_id is None else names.get(event.project_id, ""),
        event.address or "",
        event.user_agent or "",
        "" if event.before is None else json.dumps(event.before),
        "" if event.after is None else json.dumps(event.after),
    )


def _row(cells: tuple[str, ...]) -> str:
    line = io.StringIO()
    # What begins like a formula would be one in a spreadsheet.
    csv.writer(line).writerow([f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell for cell in cells])
    return line.getvalue()


def _written(at: datetime) -> str:
    return at.isoformat(timespec="microseconds" if at.microsecond else "seconds")


def _actor_id(name: str) -> uuid.UUID:
    for kind in ("user", "service account", "API key"):
        try:
            return parse_id(kind, name)
        except NotFoundError:
            continue
    raise NotFoundError("actor", name, "Expected an id of a user, a service account or a key.")
