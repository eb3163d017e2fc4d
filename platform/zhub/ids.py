"""Identifiers: UUIDv7 in the database, ``<kind>-<32 hex digits>`` in the API, as in the OpenAI dialect."""

import secrets
import time
import uuid
from datetime import UTC, datetime

from zhub.errors import NotFoundError

PREFIXES = {
    "organization": "org",
    "project": "proj",
    "API key": "key",
    "user": "user",
    "service account": "svc",
    "invitation": "invite",
    "audit event": "audit",
    "file": "file",
    "fine-tuning job": "ftjob",
    "job": "job",
    "event": "ftevent",
    "checkpoint": "ftckpt",
    "evaluation": "eval",
    "promotion": "promo",
    "alias move": "move",
    "alias request": "areq",
    "shadow": "shadow",
    "expert change": "change",
    "grant": "grant",
    "schedule": "sched",
    "schedule tick": "tick",
    "expert": "expert",
    "expert version": "ver",
    "expert import": "imp",
    "expert export": "exp",
    "classification dataset": "clsd",
    "feedback": "fb",
    "stored completion": "chatcmpl",
    "completion dataset": "cds",
    "base model": "base",
    "webhook endpoint": "whe",
    "webhook delivery": "whd",
    "webhook event": "evt",
}


def new_id() -> uuid.UUID:
    """A UUIDv7 (RFC 9562), which sorts by creation time. The standard library has one from Python 3.14 on."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | secrets.randbits(80)
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=value)


def earliest_id(at: datetime) -> uuid.UUID:
    """The lowest id that ``new_id`` makes at this time, or, long ago, of all."""
    milliseconds = max(0, int((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000))
    return uuid.UUID(int=(milliseconds << 80) | (0x7 << 76) | (0x2 << 62))


def public_id(kind: str, value: uuid.UUID) -> str:
    return f"{PREFIXES[kind]}-{value.hex}"


def parse_id(kind: str, text: str) -> uuid.UUID:
    """The UUID of a public id. Raises NotFoundError if ``text`` is not a public id of this kind."""
    prefix, _, digits = text.partition("-")
    if prefix != PREFIXES[kind] or len(digits) != 32:
        raise NotFoundError(kind, text)
    try:
        return uuid.UUID(hex=digits)
    except ValueError as exc:
        raise NotFoundError(kind, text) from exc
