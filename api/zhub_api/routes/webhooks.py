"""``/v1/webhook_endpoints``: the endpoints of a project's events, in the OpenAI dialect, and their deliveries."""

import asyncio
import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from zhub.database.sessions import tenant_session
from zhub.ids import parse_id, public_id
from zhub.models import WebhookDelivery, WebhookEndpoint
from zhub.tenancy import audit
from zhub.tenancy.keys import Caller
from zhub.webhooks import deliveries, endpoints
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.pages import Order, PageLimit, Search, page, wanted_page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1")

TEST_TIMEOUT_S = 25.0  # a relay polls every second, and a request may take 15 seconds
TEST_POLL_S = 0.25

Name = Annotated[str, Field(max_length=200)]
HINT_CHARACTERS = 4


class EndpointRequest(Schema):
    """A new endpoint."""

    model_config = ConfigDict(extra="forbid")
    url: str
    event_types: list[str]
    name: Name = ""


class EndpointChange(Schema):
    """A change of an endpoint; ``status`` can only be set to ``enabled``."""

    model_config = ConfigDict(extra="forbid")
    url: str | None = None
    event_types: list[str] | None = None
    name: Name | None = None
    status: Literal["enabled"] | None = None


class RotationRequest(Schema):
    model_config = ConfigDict(extra="forbid")
    keep_old_secret_active_for_24_hours: bool = True


class TestRequest(Schema):
    __test__ = False  # else pytest would collect this class because of its name
    model_config = ConfigDict(extra="forbid")
    event_type: str


@router.get("/webhook_event_types", dependencies=[needs("webhooks:read")])
def list_event_types(caller: CallerDep) -> dict[str, Any]:
    """All event types that an endpoint can receive."""
    return {"object": "list", "data": list(endpoints.EVENT_TYPES)}


@router.post("/webhook_endpoints", dependencies=[needs("webhooks:write")])
def create_endpoint(caller: CallerDep, context: ContextDep, request: EndpointRequest) -> dict[str, Any]:
    """Send the project's events to a URL. Only this response, and that of a rotation, contain the signing secret."""
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.create_endpoint(
            session, caller, **request.model_dump(), allow_private=context.settings.webhook_allow_private
        )
        session.refresh(endpoint)
        _audit(session, caller, endpoint, "webhook_endpoint.created")
    return _with_secret(context, endpoint)


@router.get("/webhook_endpoints", dependencies=[needs("webhooks:read")])
def list_endpoints(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "desc",
    status: Annotated[Literal["enabled", "disabled"] | None, Query()] = None,
    search: Search = None,
) -> dict[str, Any]:
    """The project's endpoints, newest first. ``search`` looks in the URL and the name."""
    place = wanted_page("webhook endpoint", after, limit, order)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = endpoints.list_endpoints(session, caller, place, status=status, search=search)
    return page([endpoint_object(context, endpoint) for endpoint in listed], has_more=has_more)


@router.get("/webhook_endpoints/{endpoint_id}", dependencies=[needs("webhooks:read")])
def retrieve_endpoint(caller: CallerDep, context: ContextDep, endpoint_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return endpoint_object(
            context, endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        )


@router.post("/webhook_endpoints/{endpoint_id}", dependencies=[needs("webhooks:write")])
def update_endpoint(
    caller: CallerDep, context: ContextDep, endpoint_id: str, request: EndpointChange
) -> dict[str, Any]:
    """Change an endpoint, or enable it again."""
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        endpoints.update_endpoint(
            session,
            endpoint,
            name=request.name,
            url=request.url,
            event_types=request.event_types,
            enable=request.status == "enabled",
            allow_private=context.settings.webhook_allow_private,
        )
        _audit(session, caller, endpoint, "webhook_endpoint.updated")
        return endpoint_object(context, endpoint)


@router.delete("/webhook_endpoints/{endpoint_id}", dependencies=[needs("webhooks:write")])
def delete_endpoint(caller: CallerDep, context: ContextDep, endpoint_id: str) -> dict[str, Any]:
    """Delete an endpoint. Nothing more is sent to it, not even its pending deliveries."""
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        endpoints.delete_endpoint(session, endpoint)
        _audit(session, caller, endpoint, "webhook_endpoint.deleted")
        return {"id": public_id("webhook endpoint", endpoint.id), "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret", dependencies=[needs("webhooks:write")])
def rotate_secret(
    caller: CallerDep, context: ContextDep, endpoint_id: str, request: RotationRequest | None = None
) -> dict[str, Any]:
    """Create a new signing secret, and return it. The old one also signs for a day, unless the body declines that."""
    keep_old = (request or RotationRequest()).keep_old_secret_active_for_24_hours
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        endpoints.rotate_secret(session, endpoint, keep_old=keep_old)
        _audit(session, caller, endpoint, "webhook_endpoint.rotated")
    return _with_secret(context, endpoint)


@router.post("/webhook_endpoints/{endpoint_id}/test", dependencies=[needs("webhooks:write")])
async def test_endpoint(
    caller: CallerDep, context: ContextDep, endpoint_id: str, request: TestRequest
) -> dict[str, Any]:
    """Send an example event in the same way as real events, and return the receiver's response."""
    delivery = await run_in_threadpool(_send_test, context, caller, endpoint_id, request.event_type)
    deadline = time.monotonic() + TEST_TIMEOUT_S
    while not delivery.attempts and time.monotonic() < deadline:
        await asyncio.sleep(TEST_POLL_S)
        delivery = await run_in_threadpool(_delivery, context, caller, endpoint_id, delivery.id)
    attempt = (
        delivery.attempts[0]
        if delivery.attempts
        else {"status_code": None, "error": f"Nobody sent it within {TEST_TIMEOUT_S:g} s: is a scheduler running?"}
    )
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": endpoint_id,
        "event_type": request.event_type,
        "success": delivery.delivered_at is not None,
        "status_code": attempt["status_code"],
        "error": attempt["error"],
        "delivery_id": public_id("webhook delivery", delivery.id),
    }


@router.get("/webhook_endpoints/{endpoint_id}/deliveries", dependencies=[needs("webhooks:read")])
def list_deliveries(
    caller: CallerDep,
    context: ContextDep,
    endpoint_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The deliveries of the last thirty days to an endpoint, newest first, with all tries. Not in the dialect."""
    last = parse_id("webhook delivery", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        listed, has_more = deliveries.list_deliveries(session, endpoint, after=last, limit=limit)
    return page([delivery_object(delivery) for delivery in listed], has_more=has_more)


@router.post("/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/replay", dependencies=[needs("webhooks:write")])
def replay_delivery(caller: CallerDep, context: ContextDep, endpoint_id: str, delivery_id: str) -> dict[str, Any]:
    """Send an event again, under its old ``webhook-id``. Not in the dialect."""
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        delivery = deliveries.get_delivery(session, endpoint, parse_id("webhook delivery", delivery_id))
        deliveries.replay(session, endpoint, delivery)
    return delivery_object(delivery)


def _audit(session: Session, caller: Caller, endpoint: WebhookEndpoint, action: str) -> None:
    state = {"url": endpoint.url, "event_types": endpoint.event_types, "status": endpoint.status}
    target = public_id("webhook endpoint", endpoint.id)
    audit.record(session, caller, action, target, after=state)


def _send_test(context: Context, caller: Caller, endpoint_id: str, event_type: str) -> WebhookDelivery:
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        delivery = endpoints.send_test(session, endpoint, event_type)
        session.refresh(delivery)
    return delivery


def _delivery(context: Context, caller: Caller, endpoint_id: str, delivery_id: uuid.UUID) -> WebhookDelivery:
    with tenant_session(context.engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, parse_id("webhook endpoint", endpoint_id))
        return deliveries.get_delivery(session, endpoint, delivery_id)


def endpoint_object(context: Context, endpoint: WebhookEndpoint) -> dict[str, Any]:
    not_before = endpoint.not_before
    return {
        "id": public_id("webhook endpoint", endpoint.id),
        "object": "webhook_endpoint",
        "created_at": int(endpoint.created_at.timestamp()),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "status": endpoint.status,
        "status_details": endpoint.status_details,
        "not_before": (
            int(not_before.timestamp()) if not_before is not None and not_before > deliveries.now_utc() else None
        ),
        "signing_secret_hint": f"whsec_…{_secret(context, endpoint)[-HINT_CHARACTERS:]}",
    }


def delivery_object(delivery: WebhookDelivery) -> dict[str, Any]:
    pending = delivery.next_try_at is not None
    return {
        "id": public_id("webhook delivery", delivery.id),
        "object": "webhook_endpoint.delivery",
        "created_at": int(delivery.created_at.timestamp()),
        "event_id": public_id("webhook event", delivery.event_id),
        "event_type": delivery.type,
        "data": delivery.data,
        "status": "pending" if pending else "delivered" if delivery.delivered_at else "failed",
        "next_try_at": int(delivery.next_try_at.timestamp()) if delivery.next_try_at else None,
        "attempts": delivery.attempts,
    }


def _with_secret(context: Context, endpoint: WebhookEndpoint) -> dict[str, Any]:
    return endpoint_object(context, endpoint) | {"signing_secret": _secret(context, endpoint)}


def _secret(context: Context, endpoint: WebhookEndpoint) -> str:
    return endpoints.secret_of(endpoint.id, endpoint.rotation, context.settings.secret_key.get_secret_value())
