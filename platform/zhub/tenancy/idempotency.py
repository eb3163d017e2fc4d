"""Requests that are made once, however often they are sent: known again by their Idempotency-Key and their hash."""

import hashlib
from typing import TypeVar

from pydantic import BaseModel as Schema
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.errors import IdempotencyMismatchError, InvalidRequestError
from zhub.manifest import canonical_json
from zhub.models import Feedback, Job
from zhub.tenancy.keys import Caller

Made = TypeVar("Made", Job, Feedback)


def hash_of(request: Schema) -> str:
    """The same for equal requests. Raises InvalidRequestError for one that JSON cannot write back."""
    try:
        return hashlib.sha256(canonical_json(request.model_dump(mode="json"))).hexdigest()
    except ValueError as exc:
        raise InvalidRequestError(
            "The request holds what JSON cannot write back: half of a surrogate pair, or values nested too deeply."
        ) from exc


def made_before(
    session: Session, caller: Caller, kind: type[Made], key: str, request_hash: str, *, otherwise: str
) -> Made | None:
    """What a request with this key made in the caller's project, if there was one.

    Raises:
        IdempotencyMismatchError: it was another request; ``otherwise`` says what it was used for.
    """
    made = session.scalar(select(kind).where(kind.project_id == caller.project_id, kind.idempotency_key == key))
    if made is not None and made.request_hash != request_hash:
        raise IdempotencyMismatchError(
            f"The Idempotency-Key '{key}' was used for {otherwise}. Use a new key.", param="Idempotency-Key"
        )
    return made
