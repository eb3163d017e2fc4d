"""How many requests an organisation may send in a minute: a bucket of tokens each, in the memory of this process.

A bucket holds a minute's requests and fills evenly, so a burst of that many passes and then as many as the rate lets
through. The limit is read again every half minute. Every answer says where the bucket stands, in the dialect's headers.
"""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Depends, Request
from sqlalchemy import Engine
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zhub.database.sessions import tenant_session
from zhub.errors import RateLimitedError
from zhub.tenancy import quotas
from zhub_api.context import CallerDep

LIMIT_KEPT_S = 30.0


@dataclass
class _Bucket:
    limit: int
    tokens: float
    at: float
    limit_read_at: float


@dataclass(frozen=True)
class Standing:
    """Where a bucket stands after a request. ``reset_s``: until it is full again."""

    limit: int
    remaining: int
    reset_s: float


class RequestRates:
    """The buckets of all organisations; safe from several threads."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[uuid.UUID, _Bucket] = {}

    def take(self, org_id: uuid.UUID) -> Standing:
        """Take one token.

        Raises:
            RateLimitedError: there is none.
        """
        bucket = self._buckets.get(org_id)
        if bucket is None or self._clock() - bucket.limit_read_at > LIMIT_KEPT_S:
            limit = self._read_limit(org_id)
            with self._lock:
                now = self._clock()
                bucket = self._buckets.setdefault(org_id, _Bucket(limit, limit, now, now))
                bucket.limit, bucket.limit_read_at = limit, now
        with self._lock:
            now, per_second = self._clock(), bucket.limit / 60
            bucket.tokens = min(bucket.limit, bucket.tokens + (now - bucket.at) * per_second)
            bucket.at = now
            if bucket.tokens < 1:
                raise RateLimitedError(bucket.limit, (1 - bucket.tokens) / per_second)
            bucket.tokens -= 1
            return Standing(bucket.limit, int(bucket.tokens), (bucket.limit - bucket.tokens) / per_second)

    def _read_limit(self, org_id: uuid.UUID) -> int:
        with tenant_session(self._engine, org_id) as session:
            return quotas.limits_of(session, org_id).requests_per_minute


def take(request: Request, caller: CallerDep) -> None:
    """Count a request against its organisation, once its key is known."""
    try:
        request.state.standing = request.app.state.rates.take(caller.org_id)
    except RateLimitedError as exc:
        request.state.standing = Standing(exc.limit, 0, 60.0)
        raise


Rated = Depends(take)


class RateHeaders:
    """A middleware: says in each answer that was counted where the organisation stands."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_standing(message: Message) -> None:
            standing = scope.get("state", {}).get("standing")
            if message["type"] == "http.response.start" and isinstance(standing, Standing):
                headers = MutableHeaders(scope=message)
                headers["x-ratelimit-limit-requests"] = str(standing.limit)
                headers["x-ratelimit-remaining-requests"] = str(standing.remaining)
                headers["x-ratelimit-reset-requests"] = f"{standing.reset_s:.3f}s"
            await send(message)

        await self._app(scope, receive, send_with_standing)
