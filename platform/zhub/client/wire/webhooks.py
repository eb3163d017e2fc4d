"""Answers about webhook endpoints and deliveries to them."""

from typing import Any

from zhub.client.wire.answer import Answer


class EndpointRecord(Answer):
    """A webhook endpoint. ``signing_secret`` is given only when it was just made or rotated.

    ``not_before``: until when, in seconds of Unix time, its receiver asked to be left alone.
    """

    id: str
    created_at: int
    name: str
    url: str
    event_types: list[str]
    status: str
    status_details: str | None
    not_before: int | None = None
    signing_secret_hint: str
    signing_secret: str | None = None


class EndpointTest(Answer):
    """The result of sending an example to an endpoint."""

    webhook_endpoint_id: str
    event_type: str
    success: bool
    status_code: int | None
    error: str | None
    delivery_id: str


class DeliveryAttempt(Answer):
    """One try to deliver an event: a status, or an error where there was no whole answer."""

    at: int
    status_code: int | None
    error: str | None
    duration_s: float
    next_try_at: int | None


class DeliveryRecord(Answer):
    """The delivery of one event to one endpoint. ``status`` is ``pending``, ``delivered`` or ``failed``."""

    id: str
    created_at: int
    event_id: str
    event_type: str
    data: dict[str, Any]
    status: str
    next_try_at: int | None
    attempts: list[DeliveryAttempt]
