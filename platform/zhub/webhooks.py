"""Webhooks: a project's events, sent to the addresses that it named, as https://www.standardwebhooks.com has it.

A delivery is written where the event happens, in the same transaction and only where somebody subscribed to it: the
deliveries are the outbox. Each is claimed for a while, sent, and then ended or put off, so that what a relay forgot by
dying is sent again: at least once, under one id. Functions take a Session and never commit.
"""

import base64
import hashlib
import hmac
import json
import random
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from zhub import db
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError
from zhub.ids import new_id, public_id
from zhub.models import WebhookDelivery, WebhookEndpoint
from zhub.outbound import Outcome, check_url
from zhub.tenancy import Caller

JOB_STATES = ("succeeded", "failed", "cancelled", "paused")
DISABLED = "webhook_endpoint.disabled"
PUBLISHED = "expert.version.published"
EVENT_TYPES = (
    *(f"fine_tuning.job.{state}" for state in JOB_STATES),
    *(f"evaluation.{state}" for state in JOB_STATES if state != "paused"),
    PUBLISHED,
    DISABLED,
)
EXAMPLE_IDS = {
    "fine_tuning": f"ftjob-{'0' * 32}",
    "evaluation": f"eval-{'0' * 32}",
    "expert": "main.example@v1",
    "webhook_endpoint": f"whe-{'0' * 32}",
}
# Between one try and the next: the schedule that Standard Webhooks gives as its example, about three days in all.
BACK_OFFS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_TRIES = len(BACK_OFFS_S) + 1
MAX_RETRY_AFTER_S = BACK_OFFS_S[-1]  # a receiver may put us off by as much as we do ourselves, and no more
JITTER = 0.1  # of a back-off, either way: what failed together does not come back together
CLAIM_S = 60.0  # longer than a request may take
MAX_ENDPOINTS = 20  # of a project
MAX_ATTEMPTS_KEPT = 50
OLD_SECRET_FOR = timedelta(hours=24)
KEPT_FOR = timedelta(days=30)
GONE = 410


@dataclass(frozen=True)
class Due:
    """A delivery that was claimed: what to send, and where."""

    id: uuid.UUID
    org_id: uuid.UUID
    endpoint_id: uuid.UUID
    event_id: uuid.UUID
    type: str
    data: dict[str, Any]
    created_at: datetime
    url: str
    rotations: Sequence[int]
    """Of the secrets that sign, the newest first."""
    sending_until: datetime
    """Until when the endpoint is this claim's, and nobody else sends to it."""

    def body(self) -> str:
        """The same bytes at every try."""
        created = int(self.created_at.timestamp())
        event = {"id": public_id("webhook event", self.event_id), "object": "event", "created_at": created}
        return json.dumps(event | {"type": self.type, "data": self.data}, separators=(",", ":"), ensure_ascii=False)

    def headers(self, secret_key: str, at: datetime) -> dict[str, str]:
        """What proves the sender of ``body``, at this moment (UTC)."""
        event_id, body = public_id("webhook event", self.event_id), self.body()
        secrets = [secret_of(self.endpoint_id, rotation, secret_key) for rotation in self.rotations]
        return {
            "content-type": "application/json",
            "user-agent": "zhub-webhooks/1",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(Webhook(secret).sign(event_id, at, body) for secret in secrets),
        }


def secret_of(endpoint_id: uuid.UUID, rotation: int, secret_key: str) -> str:
    """``whsec_…``, derived with HMAC-SHA-256, so that whoever reads the database cannot sign."""
    message = f"webhook endpoint {endpoint_id.hex}, rotation {rotation}".encode()
    return "whsec_" + base64.b64encode(hmac.new(secret_key.encode(), message, hashlib.sha256).digest()).decode()


def create_endpoint(
    session: Session, caller: Caller, *, name: str, url: str, event_types: Sequence[str], allow_private: bool
) -> WebhookEndpoint:
    """Send these events of the caller's project to ``url`` from now on.

    Raises:
        InvalidRequestError: an event type that there is none of, or a URL that nothing may be sent to.
        QuotaExceededError: the project has ``MAX_ENDPOINTS``.
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
    session: Session, caller: Caller, *, after: uuid.UUID | None, limit: int
) -> tuple[list[WebhookEndpoint], bool]:
    """The project's endpoints, newest first, and whether there are more."""
    statement = select(WebhookEndpoint).where(*_of(caller)).order_by(WebhookEndpoint.id.desc()).limit(limit + 1)
    if after is not None:
        statement = statement.where(WebhookEndpoint.id < after)
    found = list(session.scalars(statement))
    return found[:limit], len(found) > limit


def get_endpoint(session: Session, caller: Caller, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    """Raises NotFoundError."""
    found = session.scalar(select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, *_of(caller)))
    if found is None:
        raise NotFoundError("webhook endpoint", public_id("webhook endpoint", endpoint_id))
    return found


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
    """Change what is not None; ``enable`` lets a disabled endpoint get events again. Raises as ``create_endpoint``.

    What the receiver asked for by Retry-After holds no longer at another URL, nor once it is enabled.
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
    """Nothing is sent to it any more; the row goes once nothing of it is kept."""
    endpoint.deleted_at = func.now()
    session.flush()
    _give_up(session, endpoint.id)


def rotate_secret(session: Session, endpoint: WebhookEndpoint, *, keep_old: bool) -> None:
    """Sign with a new secret from now on, and for a day with the old one too unless it has leaked."""
    endpoint.rotation += 1
    endpoint.old_secret_until = func.now() + OLD_SECRET_FOR if keep_old else None
    session.flush()


def announce(session: Session, org_id: uuid.UUID, project_id: uuid.UUID, event_type: str, data: dict[str, Any]) -> None:
    """Put an event into the outbox of every endpoint of the project that wants it."""
    session.execute(
        text(
            """
            INSERT INTO webhook_deliveries (id, org_id, endpoint_id, event_id, type, data, tries_left)
            SELECT gen_random_uuid(), org_id, id, :event, :type, cast(:data AS jsonb), :tries
              FROM webhook_endpoints
             WHERE org_id = :org AND project_id = :project AND status = 'enabled' AND deleted_at IS NULL
               AND event_types @> to_jsonb(cast(:type AS text))
            """
        ),
        {
            "event": new_id(),
            "type": event_type,
            "data": json.dumps(data),
            "tries": MAX_TRIES,
            "org": org_id,
            "project": project_id,
        },
    )


def announce_job(session: Session, job_id: uuid.UUID) -> None:
    """The same for the state that a job has now; nothing for jobs that no event type speaks of."""
    # One statement beside the change of state, also where nobody listens: it finds no endpoint and writes nothing.
    statement = ANNOUNCE_JOBS.format(jobs="(SELECT * FROM jobs WHERE id = :job)")
    session.execute(text(statement), {"job": job_id, "event": new_id(), "tries": MAX_TRIES})


# For all of ``jobs``, rows of the table with the state that is to be told. Needs :event and :tries.
ANNOUNCE_JOBS = """
    INSERT INTO webhook_deliveries (id, org_id, endpoint_id, event_id, type, data, tries_left)
    SELECT gen_random_uuid(), e.org_id, e.id, :event, told.type, jsonb_build_object('id', told.id), :tries
      FROM {jobs} j
      LEFT JOIN evaluations v ON v.job_id = j.id
     CROSS JOIN LATERAL (
           SELECT CASE j.kind WHEN 'train' THEN 'fine_tuning.job.' ELSE 'evaluation.' END || j.state AS type,
                  CASE j.kind WHEN 'train' THEN 'ftjob-' || replace(cast(j.id AS text), '-', '')
                              ELSE 'eval-' || replace(cast(v.id AS text), '-', '') END AS id) told
      JOIN webhook_endpoints e
        ON e.org_id = j.org_id AND e.project_id = j.project_id AND e.status = 'enabled'
       AND e.deleted_at IS NULL AND e.event_types @> to_jsonb(told.type)
     WHERE j.kind IN ('train', 'evaluate')
"""


def send_test(session: Session, endpoint: WebhookEndpoint, event_type: str) -> WebhookDelivery:
    """Put an example of an event into the endpoint's outbox, to be tried once, whatever its receiver asked for.

    Raises:
        ConflictError: the endpoint is disabled.
        InvalidRequestError: there is no such event type.
    """
    _check_types([event_type], param="event_type")
    _require_enabled(endpoint)
    endpoint.not_before = None
    example = {"id": EXAMPLE_IDS[event_type.partition(".")[0]], "test": True}
    made = WebhookDelivery(
        org_id=endpoint.org_id,
        endpoint_id=endpoint.id,
        event_id=new_id(),
        type=event_type,
        data=example,
        tries_left=1,
    )
    session.add(made)
    session.flush()
    return made


def list_deliveries(
    session: Session, endpoint: WebhookEndpoint, *, after: uuid.UUID | None, limit: int
) -> tuple[list[WebhookDelivery], bool]:
    """What was and will be sent to an endpoint, newest event first, and whether there is more."""
    statement = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id)
    if after is not None:
        statement = statement.where(WebhookDelivery.event_id < get_delivery(session, endpoint, after).event_id)
    found = list(session.scalars(statement.order_by(WebhookDelivery.event_id.desc()).limit(limit + 1)))
    return found[:limit], len(found) > limit


def get_delivery(session: Session, endpoint: WebhookEndpoint, delivery_id: uuid.UUID) -> WebhookDelivery:
    """Raises NotFoundError."""
    of_endpoint = WebhookDelivery.endpoint_id == endpoint.id
    found = session.scalar(select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, of_endpoint))
    if found is None:
        raise NotFoundError("webhook delivery", public_id("webhook delivery", delivery_id))
    return found


def replay(session: Session, endpoint: WebhookEndpoint, delivery: WebhookDelivery) -> None:
    """Send an event again, now, under its old id, with as many tries as a new one. Raises ConflictError if disabled."""
    _require_enabled(endpoint)
    endpoint.not_before = None
    delivery.next_try_at, delivery.tries_left, delivery.delivered_at = func.now(), MAX_TRIES, None
    session.flush()
    session.refresh(delivery)


def claim(session: Session, *, in_flight: Collection[Due], room: int, room_of_org: int) -> list[Due]:
    """Take what is due and keep it, with its endpoint, from everybody for ``CLAIM_S``: at most ``room``.

    An endpoint is claimed by one relay at a time, for one delivery, so that events come in their order also from
    several relays. What this one has ``in_flight`` counts against its ``room_of_org`` for an organisation.
    Of an endpoint what was tried most goes first: where the receiver grants one try a day, one event after the other
    has its tries, and an endpoint that takes nothing is noticed.
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
                       row_number() OVER (PARTITION BY free.org_id ORDER BY first.next_try_at) AS place
                  FROM free
                 CROSS JOIN LATERAL (
                       SELECT id, next_try_at FROM webhook_deliveries
                        WHERE endpoint_id = free.id AND next_try_at <= now()
                        ORDER BY tries_left, next_try_at, event_id LIMIT 1 FOR UPDATE SKIP LOCKED) first
            ), chosen AS MATERIALIZED (
                SELECT id, endpoint_id FROM due
                 WHERE place + cardinality(array_positions(cast(:orgs AS uuid[]), org_id)) <= :room_of_org
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
    """Write down how a try ended, and when the next one is; disable an endpoint that is gone or always fails."""
    # Before the delivery, as a claim and a removal lock them: else one would wait for the other.
    of_endpoint = select(WebhookEndpoint).where(WebhookEndpoint.id == due.endpoint_id)
    endpoint = session.scalars(of_endpoint.with_for_update(key_share=True)).one_or_none()
    if endpoint is None:
        return
    if endpoint.sending_until == due.sending_until:  # otherwise this comes late, and another claim has it
        endpoint.sending_until = None
    delivery = session.scalars(
        select(WebhookDelivery).where(WebhookDelivery.id == due.id).with_for_update()
    ).one_or_none()
    if delivery is None:
        return
    delivered = outcome.status_code is not None and 200 <= outcome.status_code < 300
    delivery.tries_left -= 1
    # None by now where the endpoint was disabled or deleted while this was on its way.
    ended = delivered or delivery.tries_left <= 0 or delivery.next_try_at is None
    now = db.now(session)
    asked_s = 0.0 if delivered else _asked_s(outcome.retry_after, now)
    # Never sooner than without the header: its tries are counted, and must last for three days.
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
    elif outcome.status_code == GONE:
        _disable(session, due.endpoint_id, "It answered 410 Gone.")
    elif delay_s is None and len(delivery.attempts) >= MAX_TRIES:
        _disable(
            session,
            due.endpoint_id,
            f"It took nothing since {delivery.created_at:%Y-%m-%d %H:%M} UTC, in {MAX_TRIES} tries.",
            unless_success_since=delivery.created_at,
        )
    if asked_s:
        # The receiver speaks of itself, not of this event: nothing else is sent to it meanwhile.
        endpoint.not_before = now + timedelta(seconds=asked_s)
    session.flush()


def forget(session: Session) -> None:
    """Remove deliveries that are older than ``KEPT_FOR``, and deleted endpoints that nothing is kept of."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.created_at < func.now() - KEPT_FOR))
    kept = select(WebhookDelivery.id).where(WebhookDelivery.endpoint_id == WebhookEndpoint.id).exists()
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.deleted_at.is_not(None), ~kept))


def now_utc() -> datetime:
    """For ``webhook-timestamp``, which receivers compare with their own clocks."""
    return datetime.now(UTC)


def _back_off_s(tries_left: int) -> float:
    return BACK_OFFS_S[MAX_TRIES - 1 - tries_left] * random.uniform(1 - JITTER, 1 + JITTER)


def _asked_s(retry_after: str | None, now: datetime) -> float:
    """How long, in seconds, a receiver wants to be left alone; 0 where it does not say so in a way that makes sense.

    ``retry_after`` is a number of seconds or a date, as RFC 9110 has it.
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


def _disable(
    session: Session, endpoint_id: uuid.UUID, details: str, *, unless_success_since: datetime | None = None
) -> None:
    """Send nothing to an endpoint any more, and tell the project's others."""
    statement = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.status == "enabled")
    if unless_success_since is not None:
        never_since = func.coalesce(WebhookEndpoint.last_success_at, unless_success_since) <= unless_success_since
        statement = statement.where(never_since)
    changed = session.scalars(
        statement.values(status="disabled", status_details=details).returning(WebhookEndpoint)
    ).one_or_none()
    if changed is None:
        return
    _give_up(session, endpoint_id)
    data = {"id": public_id("webhook endpoint", endpoint_id), "name": changed.name, "reason": details}
    announce(session, changed.org_id, changed.project_id, DISABLED, data)


def _give_up(session: Session, endpoint_id: uuid.UUID) -> None:
    """What still waits is not sent; it can be replayed."""
    waiting = (WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.next_try_at.is_not(None))
    session.execute(update(WebhookDelivery).where(*waiting).values(next_try_at=None))


def _require_enabled(endpoint: WebhookEndpoint) -> None:
    if endpoint.status != "enabled":
        raise ConflictError(
            f"The endpoint is disabled: {endpoint.status_details} Mend the receiver, then POST "
            f'{{"status": "enabled"}} to /v1/webhook_endpoints/{public_id("webhook endpoint", endpoint.id)}.'
        )


def _check_types(event_types: Sequence[str], *, param: str = "event_types") -> None:
    unknown = sorted(set(event_types) - set(EVENT_TYPES))
    if unknown or not event_types:
        found = f"Unknown event types {', '.join(unknown)}." if unknown else "Name at least one event type."
        raise InvalidRequestError(f"{found} Known: {', '.join(EVENT_TYPES)}.", param=param)


def _of(caller: Caller) -> tuple[Any, ...]:
    return WebhookEndpoint.project_id == caller.project_id, WebhookEndpoint.deleted_at.is_(None)
