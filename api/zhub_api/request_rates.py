"""How many requests an organisation may send in a minute, and what each answer says of it in the dialect's headers.

The limit is read again every half minute.
"""

import time
import uuid
from collections.abc import Callable

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zhub.errors import RateLimitedError
from zhub.process.buckets import Buckets, Standing
from zhub.tenancy import quotas
from zhub_api.context import CallerDep
from zhub_api.kept_values import KeptValues

LIMIT_KEPT_S = 30.0


class RequestRates:
    """The buckets of all organisations, each with its limit. Thread-safe."""

    def __init__(self, engine: Engine, buckets: Buckets, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = buckets
        self._limits = KeptValues(engine, _limit_of, LIMIT_KEPT_S, clock)

    def take(self, org_id: uuid.UUID) -> Standing:
        """Count a request, which may be refused."""
        return self._buckets.take(org_id.hex, self._limits.of(org_id))


def _limit_of(session: Session, org_id: uuid.UUID) -> int:
    return quotas.limits_of(session, org_id).requests_per_minute


def take(request: Request, caller: CallerDep) -> None:
    """Count a request against its organisation, once its key is known.

    Raises:
        RateLimitedError: it sent too many.
    """
    standing = request.state.standing = request.app.state.rates.take(caller.org_id)
    if standing.retry_after_s:
        raise RateLimitedError(standing.limit, standing.retry_after_s)


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
