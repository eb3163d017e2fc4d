"""Wake-ups: hints that shorten a wait. Losing every one of them costs a poll interval, never a job."""

import math
import time
from collections.abc import Callable
from typing import Protocol

import redis

SCHEDULER = "zhub:wake:scheduler"
# Looking up the name of a server that is away may take many seconds, and no timeout of the client covers it.
LEFT_ALONE_S = 5.0


def agent_topic(cluster: str) -> str:
    return f"zhub:wake:agent:{cluster}"


class Wakeup(Protocol):
    """Two verbs; neither raises and neither blocks for longer than it says."""

    def notify(self, topic: str) -> None:
        """Wake whoever waits for ``topic``, if that is possible."""

    def wait(self, topic: str, timeout_s: float) -> None:
        """Return after ``timeout_s`` seconds, or earlier when notified. Waking for nothing is allowed."""


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


class RedisWakeup:
    """Hints over Redis pub/sub. While Redis is away it behaves like PollingWakeup, and reconnects by itself."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=2, socket_connect_timeout=1, health_check_interval=30, retry=None
        )
        self._subscriptions: dict[str, redis.client.PubSub] = {}
        self._left_alone_until = -math.inf

    def notify(self, topic: str) -> None:
        if time.monotonic() < self._left_alone_until:
            return
        try:
            self._client.publish(topic, b"")
        except redis.RedisError:
            self._left_alone_until = time.monotonic() + LEFT_ALONE_S

    def wait(self, topic: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        if time.monotonic() >= self._left_alone_until:
            try:
                subscription = self._subscription(topic)
                while (left := deadline - time.monotonic()) > 0:
                    message = subscription.get_message(timeout=min(left, 1.0))
                    if message and message["type"] == "message":
                        return
            except redis.RedisError:
                self._subscriptions.pop(topic, None)
                self._left_alone_until = time.monotonic() + LEFT_ALONE_S
        time.sleep(max(0.0, deadline - time.monotonic()))

    def _subscription(self, topic: str) -> "redis.client.PubSub":
        if topic not in self._subscriptions:
            subscription = self._client.pubsub()  # type: ignore[no-untyped-call]
            subscription.subscribe(topic)
            self._subscriptions[topic] = subscription
        return self._subscriptions[topic]
