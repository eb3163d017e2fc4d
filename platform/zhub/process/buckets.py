"""Buckets of tokens, one for each key: a minute's requests pass at once, and then as many as the rate lets through.

All that is kept of a bucket is when it will be full again: a request puts that off by the time in which one token comes
back, and is refused where it would lie more than a minute ahead. This is the generic cell rate algorithm, ITU-T I.371.
With Redis all processes count together; without it, or while it is away, each counts what it answers itself.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import redis

MINUTE_S = 60.0
ROUNDING_S = 1e-6  # sums of floats must not refuse the last token
TIMEOUT_S = 0.25  # every request waits for the answer
# Of a server that is away: looking up its name may take many seconds, and no timeout of the client covers it.
RETRY_AFTER_S = 5.0
KEYS = "zhub:bucket:"

log = logging.getLogger("zhub.buckets")

# The server's clock is that of all processes. Answers whether the request passed, and in how many seconds it is full.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local token = 60 / tonumber(ARGV[1])
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
if full + token > now + 60 + 1e-6 then
    return {0, string.format('%.6f', full - now)}
end
full = full + token
redis.call('SET', KEYS[1], string.format('%.6f', full), 'PX', math.ceil((full - now) * 1000) + 1)
return {1, string.format('%.6f', full - now)}
"""


@dataclass(frozen=True)
class Standing:
    """Where a bucket stands after a request. ``reset_s``: until it is full; ``retry_after_s``: 0 where it passed."""

    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float


class Buckets(Protocol):
    """Takes never raise, and wait for half a second at most."""

    def take(self, key: str, limit: int) -> Standing:
        """Take a token from the bucket of ``key``, which gets ``limit`` a minute, if there is one."""


def open_buckets(redis_url: str | None) -> Buckets:
    return RedisBuckets(redis_url) if redis_url else MemoryBuckets()


class MemoryBuckets:
    """Buckets of this process. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at: dict[str, float] = {}

    def take(self, key: str, limit: int) -> Standing:
        token_s = MINUTE_S / limit
        with self._lock:
            now = self._clock()
            full_at = max(now, self._full_at.get(key, now))
            passed = full_at + token_s <= now + MINUTE_S + ROUNDING_S
            if passed:
                full_at = self._full_at[key] = full_at + token_s
        return _standing(limit, full_at - now, passed=passed)


class RedisBuckets:
    """Buckets of all processes, in Redis. While it is away, those of this process. Thread-safe."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None)
        self._take = self._client.register_script(_TAKE)
        self._meanwhile = MemoryBuckets()
        self._lock = threading.Lock()
        self._away = False
        self._retry_at = -math.inf

    def take(self, key: str, limit: int) -> Standing:
        if not self._may_ask():
            return self._meanwhile.take(key, limit)
        try:
            passed, reset_s = self._take(keys=[KEYS + key], args=[limit])
        except redis.RedisError as exc:
            self._note_away(exc)
            return self._meanwhile.take(key, limit)
        self._note_back()
        return _standing(limit, float(reset_s), passed=bool(passed))

    def _may_ask(self) -> bool:
        """Whether to ask Redis: while it is away, one request in RETRY_AFTER_S does."""
        with self._lock:
            if not self._away:
                return True
            now = time.monotonic()
            if now < self._retry_at:
                return False
            self._retry_at = now + RETRY_AFTER_S
            return True

    def _note_away(self, exc: redis.RedisError) -> None:
        with self._lock:
            was_away, self._away = self._away, True
            self._retry_at = time.monotonic() + RETRY_AFTER_S
        if not was_away:
            log.warning(
                "Redis does not answer (%s): this process counts requests by itself until it does",
                exc,
                extra={"action": "buckets_apart"},
            )

    def _note_back(self) -> None:
        with self._lock:
            was_away, self._away = self._away, False
        if was_away:
            log.info("Redis answers again: all processes count together", extra={"action": "buckets_together"})


def _standing(limit: int, reset_s: float, *, passed: bool) -> Standing:
    token_s = MINUTE_S / limit
    remaining = math.floor((MINUTE_S - reset_s + ROUNDING_S) / token_s)
    retry_after_s = 0.0 if passed else max(ROUNDING_S, reset_s + token_s - MINUTE_S)
    return Standing(limit, max(0, remaining), reset_s, retry_after_s)
