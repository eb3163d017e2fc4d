"""Wake-ups: hints that shorten a wait. Losing every one of them costs a poll interval, never a job."""

import math
import time
import uuid
from collections.abc import Callable
from typing import Protocol

import redis

SCHEDULER = "zhub:wake:scheduler"
JOBS = "zhub:wake:job:"
# Looking up the name of a server that is away may take many seconds, and no timeout of the client covers it.
RETRY_AFTER_S = 5.0


def agent_topic(cluster: str) -> str:
    return f"zhub:wake:agent:{cluster}"


def job_topic(job_id: uuid.UUID) -> str:
    """The topic of the streams that follow a job's events."""
    return f"{JOBS}{job_id.hex}"


class Wakeup(Protocol):
    """None of the methods raises, and none blocks for longer than its ``timeout_s``."""

    def notify(self, topic: str) -> None:
        """Wake whoever waits for ``topic``, if that is possible."""

    def wait(self, topic: str, timeout_s: float) -> None:
        """Return after ``timeout_s`` seconds, or earlier when notified. Waking for nothing is allowed."""

    def hear(self, prefix: str, timeout_s: float) -> str | None:
        """The next topic with this prefix that is notified, or None after ``timeout_s`` seconds."""


def open_wakeup(redis_url: str | None) -> Wakeup:
    return RedisWakeup(redis_url) if redis_url else PollingWakeup()


class PollingWakeup:
    """No hints: every wait lasts its time."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep

    def notify(self, topic: str) -> None:
        return

    def wait(self, topic: str, timeout_s: float) -> None:
        self._sleep(timeout_s)

    def hear(self, prefix: str, timeout_s: float) -> str | None:
        self._sleep(timeout_s)
        return None


class RedisWakeup:
    """Hints over Redis pub/sub. While Redis is away it behaves like PollingWakeup, and reconnects by itself."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=2, socket_connect_timeout=1, health_check_interval=30, retry=None
        )
        self._subscriptions: dict[str, redis.client.PubSub] = {}
        self._retry_at = -math.inf

    def notify(self, topic: str) -> None:
        if time.monotonic() < self._retry_at:
            return
        try:
            self._client.publish(topic, b"")
        except redis.RedisError:
            self._retry_at = time.monotonic() + RETRY_AFTER_S

    def wait(self, topic: str, timeout_s: float) -> None:
        self._next(topic, timeout_s)

    def hear(self, prefix: str, timeout_s: float) -> str | None:
        return self._next(f"{prefix}*", timeout_s)

    def _next(self, pattern: str, timeout_s: float) -> str | None:
        """The topic that was notified, or None when the time is over."""
        deadline = time.monotonic() + timeout_s
        if time.monotonic() >= self._retry_at:
            try:
                subscription = self._subscription(pattern)
                while (left := deadline - time.monotonic()) > 0:
                    message = subscription.get_message(timeout=min(left, 1.0))
                    if message and message["type"] in ("message", "pmessage"):
                        return str(message["channel"].decode())
            except redis.RedisError:
                self._subscriptions.pop(pattern, None)
                self._retry_at = time.monotonic() + RETRY_AFTER_S
        time.sleep(max(0.0, deadline - time.monotonic()))
        return None

    def _subscription(self, pattern: str) -> "redis.client.PubSub":
        if pattern not in self._subscriptions:
            subscription = self._client.pubsub()  # type: ignore[no-untyped-call]
            (subscription.psubscribe if pattern.endswith("*") else subscription.subscribe)(pattern)
            self._subscriptions[pattern] = subscription
        return self._subscriptions[pattern]
