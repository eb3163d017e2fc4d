"""Endpoints: the URLs to which a project's events are sent, signed as https://www.standardwebhooks.com specifies.

Functions take a Session and never commit.
"""

import base64
import hashlib
import hmac
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from zhub.database.pages import Page, read_page
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError
from zhub.ids import new_id, public_id
from zhub.models import WebhookDelivery, WebhookEndpoint
from zhub.tenancy.keys import Caller
from zhub.webhooks.outbox import announce
from zhub.webhooks.safe_http import check_url

JOB_STATES = ("succeeded", "failed", "cancelled", "paused")
DISABLED = "webhook_endpoint.disabled"
PUBLISHED = "expert.version.published"
BUDGET = "budget.threshold_reached"
EVENT_TYPES = (
    *(f"fine_tuning.job.{state}" for state in JOB_STATES),
    *(f"evaluation.{state}" for state in JOB_STATES if state != "paused"),
    PUBLISHED,
    BUDGET,
    DISABLED,
)
EXAMPLE_IDS = {
    "fine_tuning": f"ftjob-{'0' * 32}",
    "evaluation": f"eval-{'0' * 32}",
    "expert": "main.example@v1",
    "budget": "2026-01",
    "webhook_endpoint": f"whe-{'0' * 32}",
}
MAX_ENDPOINTS = 20  # of a project
OLD_SECRET_FOR = timedelta(hours=24)


def secret_of(endpoint_id: uuid.UUID, rotation: int, secret_key: str) -> str:
    """The signing secret ``whsec_…``. It is derived with HMAC-SHA-256, so that the database holds no secret."""
    message = f"webhook endpoint {endpoint_id.hex}, rotation {rotation}".encode()
    return "whsec_" + base64.b64encode(hmac.new(secret_key.encode(), message, hashlib.sha256).digest()).decode()


def create_endpoint(
    session: Session, caller: Caller, *, name: str, url: str, event_types: Sequence[str], allow_private: bool
) -> WebhookEndpoint:
    """Send these events of the caller's project to ``url`` from now on.

    Raises:
        InvalidRequestError: an event type is unknown, or requests to the URL are not allowed.
        QuotaExceededError: the project has ``MAX_ENDPOINTS`` already.
    """
    check_url(url, allow_private=allow_private)
    _check_types(event_types)
    count = select(func.count()).select_from(WebhookEndpoint).where(*_of(caller))
    if (session.scalar(count) or 0) >= MAX_ENDPOINTS:
        raise QuotaExceededError(f"The project has {MAX_ENDPOINTS} webhook endpoints, which is as many as it may.")
    endpoint = WebhookEndpoint(
        org_id=caller.org_id,
        project_id=caller.project_id,
        name=name,
        url=url,
        event_types=list(dict.fromkeys(event_types)),
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def list_endpoints(
    session: Session, caller: Caller, page: Page, *, status: str | None = None, search: str | None = None
) -> tuple[list[WebhookEndpoint], bool]:
    """The project's endpoints, and whether there are more; with this status, and this text in the URL or the name."""
    rows = select(WebhookEndpoint).where(*_of(caller))
    if status is not None:
        rows = rows.where(WebhookEndpoint.status == status)
    found = None
    if search is not None:
        found = or_(*(text.icontains(search, autoescape=True) for text in (WebhookEndpoint.url, WebhookEndpoint.name)))
    return read_page(session, rows, WebhookEndpoint.id, page, search=found)


def get_endpoint(session: Session, caller: Caller, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    """Raises NotFoundError."""
    endpoint = session.scalar(select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, *_of(caller)))
    if endpoint is None:
        raise NotFoundError("webhook endpoint", public_id("webhook endpoint", endpoint_id))
    return endpoint


def update_endpoint(
    session: Session,
    endpoint: WebhookEndpoint,
    *,
    name: str | None,
    url: str | None,
    event_types: Sequence[str] | None,
    enable: bool,
    allow_private: bool,
) -> None:
    """Change the attributes that are not None; ``enable`` enables a disabled endpoint. Raises as ``create_endpoint``.

    A new URL, and enabling, cancel the receiver's earlier Retry-After.
    """
    if name is not None:
        endpoint.name = name
    if url is not None:
        check_url(url, allow_private=allow_private)
        endpoint.url, endpoint.not_before = url, None
    if event_types is not None:
        _check_types(event_types)
        endpoint.event_types = list(dict.fromkeys(event_types))
    if enable:
        endpoint.status, endpoint.status_details, endpoint.not_before = "enabled", None, None
    session.flush()


def delete_endpoint(session: Session, endpoint: WebhookEndpoint) -> None:
    """Stop all deliveries to an endpoint, and mark it as deleted; ``deliveries.forget`` removes the row later."""
    endpoint.deleted_at = func.now()
    session.flush()
    _give_up(session, endpoint.id)


def disable(
    session: Session, endpoint_id: uuid.UUID, details: str, *, unless_success_since: datetime | None = None
) -> None:
    """Disable an endpoint, unless a delivery succeeded after that time, and announce it to the project's endpoints."""
    statement = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.status == "enabled")
    if unless_success_since is not None:
        never_since = func.coalesce(WebhookEndpoint.last_success_at, unless_success_since) <= unless_success_since
        statement = statement.where(never_since)
    endpoint = session.scalars(
        statement.values(status="disabled", status_details=details).returning(WebhookEndpoint)
    ).one_or_none()
    if endpoint is None:
        return
    _give_up(session, endpoint_id)
    data = {"id": public_id("webhook endpoint", endpoint_id), "name": endpoint.name, "reason": details}
    announce(session, endpoint.org_id, endpoint.project_id, DISABLED, data)


def require_enabled(endpoint: WebhookEndpoint) -> None:
    """Raise ConflictError if the endpoint is disabled."""
    if endpoint.status != "enabled":
        raise ConflictError(
            f"The endpoint is disabled: {endpoint.status_details} Mend the receiver, then POST "
            f'{{"status": "enabled"}} to /v1/webhook_endpoints/{public_id("webhook endpoint", endpoint.id)}.'
        )


def rotate_secret(session: Session, endpoint: WebhookEndpoint, *, keep_old: bool) -> None:
    """Sign with a new secret from now on; ``keep_old``: for ``OLD_SECRET_FOR`` with the old secret, too."""
    endpoint.rotation += 1
    endpoint.old_secret_until = func.now() + OLD_SECRET_FOR if keep_old else None
    session.flush()


def send_test(session: Session, endpoint: WebhookEndpoint, event_type: str) -> WebhookDelivery:
    """Put an example event into the endpoint's outbox, with one try, and ignore the receiver's earlier Retry-After.

    Raises:
        ConflictError: the endpoint is disabled.
        InvalidRequestError: there is no such event type.
    """
    _check_types([event_type], param="event_type")
    require_enabled(endpoint)
    endpoint.not_before = None
    example = {"id": EXAMPLE_IDS[event_type.partition(".")[0]], "test": True}
    delivery = WebhookDelivery(
        org_id=endpoint.org_id,
        endpoint_id=endpoint.id,
        event_id=new_id(),
        type=event_type,
        data=example,
        tries_left=1,
    )
    session.add(delivery)
    session.flush()
    return delivery


def _give_up(session: Session, endpoint_id: uuid.UUID) -> None:
    """Do not send an endpoint's pending deliveries; they can be replayed."""
    pending = (WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.next_try_at.is_not(None))
    session.execute(update(WebhookDelivery).where(*pending).values(next_try_at=None))


def _check_types(event_types: Sequence[str], *, param: str = "event_types") -> None:
    unknown = sorted(set(event_types) - set(EVENT_TYPES))
    if unknown or not event_types:
        problem = f"Unknown event types {', '.join(unknown)}." if unknown else "Name at least one event type."
        raise InvalidRequestError(f"{problem} Known: {', '.join(EVENT_TYPES)}.", param=param)


def _of(caller: Caller) -> tuple[Any, ...]:
    return WebhookEndpoint.project_id == caller.project_id, WebhookEndpoint.deleted_at.is_(None)
