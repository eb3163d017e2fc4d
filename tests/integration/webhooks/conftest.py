"""Endpoints and their outbox, the steps of a delivery by hand, receivers of this machine, and the relay."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from claims import claim_one
from fastapi import FastAPI
from sqlalchemy import Engine, func, select, text, update
from webhook_receivers import SUCCEEDED, Receivers

from zhub.database.sessions import system_session, tenant_session
from zhub.models import Job, WebhookDelivery, WebhookEndpoint
from zhub.process.config import Settings
from zhub.tenancy.keys import Caller
from zhub.webhooks import deliveries, endpoints, relay
from zhub.webhooks import outbox as endpoint_outbox
from zhub.webhooks.deliveries import Due
from zhub.webhooks.safe_http import Outbound, Outcome
from zhub_api.app import create_app

MakeEndpoint = Callable[..., uuid.UUID]


@pytest.fixture
def make_endpoint(api_engine: Engine, caller: Caller) -> MakeEndpoint:
    """Make an endpoint in acme's project, of every event unless told otherwise; columns change its row."""

    def make(
        event_types: Sequence[str] = endpoints.EVENT_TYPES,
        *,
        url: str = "https://hook.example.com/",
        owner: Caller | None = None,
    ) -> uuid.UUID:
        owner = owner or caller
        with tenant_session(api_engine, owner.org_id) as session:
            made = endpoints.create_endpoint(
                session, owner, name="", url=url, event_types=event_types, allow_private=True
            )
            return made.id

    return make


@pytest.fixture
def events(system_engine: Engine) -> Callable[[], list[tuple[str, Any]]]:
    """What is in the outbox, oldest first: types and ids of what they are about."""

    def read() -> list[tuple[str, Any]]:
        with system_session(system_engine) as session:
            outbox = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.event_id))
            return [(delivery.type, delivery.data["id"]) for delivery in outbox]

    return read


@pytest.fixture
def start(system_engine: Engine) -> Callable[[uuid.UUID], int]:
    """Have a job admitted and claimed; return its fence."""

    def begin(job_id: uuid.UUID) -> int:
        with system_session(system_engine) as session:
            session.execute(
                update(Job)
                .where(Job.id == job_id)
                .values(state="admitted", admitted_at=func.now(), cluster=str(job_id))
            )
            claim = claim_one(session, "train", "evaluate", "validate", cluster=str(job_id))
            assert claim is not None
            return claim.fence

    return begin


@pytest.fixture
def enqueue(system_engine: Engine, caller: Caller) -> Callable[..., None]:
    """Put an event into the outboxes of acme's project, or of another's."""

    def put(event_type: str = SUCCEEDED, job: str = "ftjob-1", owner: Caller | None = None) -> None:
        owner = owner or caller
        with system_session(system_engine) as session:
            endpoint_outbox.announce(session, owner.org_id, owner.project_id, event_type, {"id": job})

    return put


@pytest.fixture
def claim(system_engine: Engine) -> Callable[..., list[Due]]:
    """Claim what is due, as one pass of a relay does."""

    def take(in_flight: Sequence[Due] = (), room: int = 64, room_of_org: int = 64) -> list[Due]:
        with system_session(system_engine) as session:
            return deliveries.claim(session, in_flight=in_flight, room=room, room_of_org=room_of_org)

    return take


@pytest.fixture
def record(system_engine: Engine) -> Callable[[Due, Outcome], WebhookDelivery]:
    """Record how a try ended; return its delivery."""

    def write(due: Due, outcome: Outcome) -> WebhookDelivery:
        with system_session(system_engine) as session:
            deliveries.record(session, due, outcome)
        with system_session(system_engine) as session:
            return session.scalars(select(WebhookDelivery).where(WebhookDelivery.id == due.id)).one()

    return write


@pytest.fixture
def hurry(system_engine: Engine) -> Callable[[], None]:
    """Make everything due that waits for its time."""

    def make_due() -> None:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE webhook_deliveries SET next_try_at = now() WHERE next_try_at IS NOT NULL"))
            session.execute(update(WebhookEndpoint).values(not_before=None, sending_until=None))

    return make_due


@pytest.fixture
def receivers(run_server: Callable[[Any], str]) -> Receivers:
    made = Receivers()
    made.url = run_server(made).removesuffix("/v1")
    return made


@pytest.fixture
def relaying(system_engine: Engine, secret_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scheduler's thread, which looks often."""
    monkeypatch.setattr(relay, "POLL_S", 0.05)
    stopping = threading.Event()
    outbound = Outbound(allow_private=True)
    thread = threading.Thread(target=relay.relay, args=(system_engine, outbound, secret_key, stopping))
    thread.start()
    yield
    stopping.set()
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    made = create_app(settings.model_copy(update={"webhook_allow_private": True}))
    yield made
    made.state.context.engine.dispose()
