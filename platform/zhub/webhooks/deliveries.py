"""Deliveries: a relay claims each delivery of the outbox, sends it to its endpoint, and records the outcome.

A claim expires: if a relay dies, its deliveries are sent again. So an event is sent at least once, always under the
same id. Functions take a Session and never commit.
"""

import json
import random
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from zhub.database import sessions
from zhub.errors import NotFoundError
from zhub.ids import public_id
from zhub.models import WebhookDelivery, WebhookEndpoint
from zhub.webhooks import endpoints
from zhub.webhooks.outbox import BACK_OFFS_S, MAX_TRIES
from zhub.webhooks.safe_http import Outcome

MAX_RETRY_AFTER_S = BACK_OFFS_S[-1]  # a receiver's Retry-After counts for at most our own longest back-off
JITTER = 0.1  # a back-off varies by so much either way, so that deliveries that failed together retry apart
CLAIM_S = 60.0  # longer than a request may take
MAX_ATTEMPTS_KEPT = 50
KEPT_FOR = timedelta(days=30)
GONE = 410


@dataclass(frozen=True)
class Due:
    """A claimed delivery: what to send, and to which URL."""

    id: uuid.UUID
    org_id: uuid.UUID
    endpoint_id: uuid.UUID
    event_id: uuid.UUID
    type: str
    data: dict[str, Any]
    created_at: datetime
    url: str
    rotations: Sequence[int]
    """The rotations of the secrets that sign, the newest first."""
    sending_until: datetime
    """When this claim of the endpoint ends; until then no other relay sends to it."""

    def body(self) -> str:
        """The JSON of the event: the same bytes at each try."""
        created = int(self.created_at.timestamp())
        event = {"id": public_id("webhook event", self.event_id), "object": "event", "created_at": created}
        return json.dumps(event | {"type": self.type, "data": self.data}, separators=(",", ":"), ensure_ascii=False)

    def headers(self, secret_key: str, at: datetime) -> dict[str, str]:
        """The headers that sign ``body`` at the time ``at`` (UTC)."""
        event_id, body = public_id("webhook event", self.event_id), self.body()
        secrets = [endpoints.secret_of(self.endpoint_id, rotation, secret_key) for rotation in self.rotations]
        return {
            "content-type": "application/json",
            "user-agent": "zhub-webhooks/1",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(Webhook(secret).sign(event_id, at, body) for secret in secrets),
        }


def list_deliveries(
    session: Session, endpoint: WebhookEndpoint, *, after: uuid.UUID | None, limit: int
) -> tuple[list[WebhookDelivery], bool]:
    """The deliveries of an endpoint, newest event first, and whether there are more."""
    statement = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id)
    if after is not None:
        statement = statement.where(WebhookDelivery.event_id < get_delivery(session, endpoint, after).event_id)
    deliveries = list(session.scalars(statement.order_by(WebhookDelivery.event_id.desc()).limit(limit + 1)))
    return deliveries[:limit], len(deliveries) > limit


def get_delivery(session: Session, endpoint: WebhookEndpoint, delivery_id: uuid.UUID) -> WebhookDelivery:
    """Raises NotFoundError."""
    of_endpoint = WebhookDelivery.endpoint_id == endpoint.id
    delivery = session.scalar(select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, of_endpoint))
    if delivery is None:
        raise NotFoundError("webhook delivery", public_id("webhook delivery", delivery_id))
    return delivery


def replay(session: Session, endpoint: WebhookEndpoint, delivery: WebhookDelivery) -> None:
    """Send an event again now, under its old id, with as many tries as a new event.

    Raises:
        ConflictError: the endpoint is disabled.
    """
    endpoints.require_enabled(endpoint)
    endpoint.not_before = None
    session.flush()  # the endpoint before the delivery: ``claim`` and ``record`` lock them in this order
    delivery.next_try_at, delivery.tries_left, delivery.delivered_at = func.now(), MAX_TRIES, None
    session.flush()
    session.refresh(delivery)


def claim(session: Session, *, in_flight: Collection[Due], room: int, room_of_org: int) -> list[Due]:
    """Claim at most ``room`` due deliveries, each with its endpoint, for ``CLAIM_S`` seconds.

    One relay at a time claims an endpoint, for one delivery, so that its events arrive in their order. The deliveries
    that this relay has ``in_flight`` count against ``room_of_org``, its limit for an organisation. Among an endpoint's
    deliveries the one with the most tries comes first: if a receiver allows one try a day, each event uses up its tries
    before the next, and an endpoint that accepts nothing is disabled in time.
    """
    rows = session.execute(
        text(
            """
            WITH free AS MATERIALIZED (
                SELECT id, org_id FROM webhook_endpoints e
                 WHERE status = 'enabled' AND deleted_at IS NULL
                   AND coalesce(not_before <= now(), true) AND coalesce(sending_until <= now(), true)
                   AND EXISTS (SELECT FROM webhook_deliveries WHERE endpoint_id = e.id AND next_try_at <= now())
                   FOR NO KEY UPDATE SKIP LOCKED
            ), due AS (
                SELECT first.id, first.next_try_at, free.id AS endpoint_id, free.org_id,
                       row_number() OVER (PARTITION BY free.org_id ORDER BY first.next_try_at) AS position
                  FROM free
                 CROSS JOIN LATERAL (
                       SELECT id, next_try_at FROM webhook_deliveries
                        WHERE endpoint_id = free.id AND next_try_at <= now()
                        ORDER BY tries_left, next_try_at, event_id LIMIT 1 FOR UPDATE SKIP LOCKED) first
            ), chosen AS MATERIALIZED (
                SELECT id, endpoint_id FROM due
                 WHERE position + cardinality(array_positions(cast(:orgs AS uuid[]), org_id)) <= :room_of_org
                 ORDER BY next_try_at LIMIT :room
            ), sending AS (
                UPDATE webhook_endpoints e SET sending_until = now() + make_interval(secs => :claim_s)
                  FROM chosen WHERE e.id = chosen.endpoint_id
             RETURNING e.id, e.url, e.rotation, e.sending_until,
                       e.rotation > 0 AND coalesce(e.old_secret_until > now(), false) AS keep_old
            )
            UPDATE webhook_deliveries d SET next_try_at = e.sending_until
              FROM chosen JOIN sending e ON e.id = chosen.endpoint_id
             WHERE d.id = chosen.id
         RETURNING d.id, d.org_id, d.endpoint_id, d.event_id, d.type, d.data, d.created_at, e.url, e.rotation,
                   e.keep_old, e.sending_until
            """
        ),
        {
            "claim_s": CLAIM_S,
            "orgs": [due.org_id for due in in_flight],
            "room_of_org": room_of_org,
            "room": room,
        },
    ).all()
    return [
        Due(
            id=row.id,
            org_id=row.org_id,
            endpoint_id=row.endpoint_id,
            event_id=row.event_id,
            type=row.type,
            data=row.data,
            created_at=row.created_at,
            url=row.url,
            rotations=[row.rotation, row.rotation - 1] if row.keep_old else [row.rotation],
            sending_until=row.sending_until,
        )
        for row in rows
    ]


def record(session: Session, due: Due, outcome: Outcome) -> None:
    """Record how a try ended and when the next one is; disable an endpoint that is gone or always fails."""
    # The endpoint before the delivery: claims and removals lock them in this order, so there is no deadlock.
    of_endpoint = select(WebhookEndpoint).where(WebhookEndpoint.id == due.endpoint_id)
    endpoint = session.scalars(of_endpoint.with_for_update(key_share=True)).one_or_none()
    if endpoint is None:
        return
    if endpoint.sending_until == due.sending_until:  # otherwise this claim has expired, and another holds the endpoint
        endpoint.sending_until = None
    delivery = session.scalars(
        select(WebhookDelivery).where(WebhookDelivery.id == due.id).with_for_update()
    ).one_or_none()
    if delivery is None:
        return
    delivered = outcome.status_code is not None and 200 <= outcome.status_code < 300
    delivery.tries_left -= 1
    # None if the endpoint was disabled or deleted during the request.
    ended = delivered or delivery.tries_left <= 0 or delivery.next_try_at is None
    now = sessions.now(session)
    asked_s = 0.0 if delivered else _asked_s(outcome.retry_after, now)
    # Never earlier than without the header: the number of tries is limited, and they must last for three days.
    delay_s = None if ended else max(_back_off_s(delivery.tries_left), asked_s)
    delivery.next_try_at = None if delay_s is None else now + timedelta(seconds=delay_s)
    attempt = {
        "at": int(now.timestamp()),
        "status_code": outcome.status_code,
        "error": outcome.error,
        "duration_s": outcome.duration_s,
        "next_try_at": int(delivery.next_try_at.timestamp()) if delivery.next_try_at else None,
    }
    delivery.attempts = [*delivery.attempts, attempt][-MAX_ATTEMPTS_KEPT:]
    if delivered:
        delivery.delivered_at = endpoint.last_success_at = now
        endpoint.not_before = None
    elif outcome.status_code == GONE and endpoint.url == due.url:
        endpoints.disable(session, due.endpoint_id, "It answered 410 Gone.")
    elif delay_s is None and len(delivery.attempts) >= MAX_TRIES:
        endpoints.disable(
            session,
            due.endpoint_id,
            f"It took nothing since {delivery.created_at:%Y-%m-%d %H:%M} UTC, in {MAX_TRIES} tries.",
            unless_success_since=delivery.created_at,
        )
    if asked_s and endpoint.url == due.url:
        # Retry-After is about the receiver, not about this event: no other event is sent to it until then.
        endpoint.not_before = now + timedelta(seconds=asked_s)
    session.flush()


def forget(session: Session) -> None:
    """Remove deliveries that are older than ``KEPT_FOR``, and deleted endpoints without deliveries."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.created_at < func.now() - KEPT_FOR))
    kept = select(WebhookDelivery.id).where(WebhookDelivery.endpoint_id == WebhookEndpoint.id).exists()
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.deleted_at.is_not(None), ~kept))


def now_utc() -> datetime:
    """The time for ``webhook-timestamp``, from this machine's clock: receivers compare it with their own clocks."""
    return datetime.now(UTC)


def _back_off_s(tries_left: int) -> float:
    return BACK_OFFS_S[MAX_TRIES - 1 - tries_left] * random.uniform(1 - JITTER, 1 + JITTER)


def _asked_s(retry_after: str | None, now: datetime) -> float:
    """The seconds that a receiver's Retry-After asks us to wait, with jitter; 0 if it is missing or malformed.

    ``retry_after`` is a number of seconds or a date (RFC 9110).
    """
    if retry_after is None:
        return 0.0
    if retry_after.isascii() and retry_after.isdigit():
        asked_s = float(retry_after)
    else:
        try:
            until = parsedate_to_datetime(retry_after)
        except (ValueError, OverflowError):
            return 0.0
        asked_s = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(asked_s, 0.0), MAX_RETRY_AFTER_S) * random.uniform(1, 1 + JITTER)
