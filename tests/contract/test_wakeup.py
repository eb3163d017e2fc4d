"""What every wake-up promises: a wait ends in time whatever happens to the server, and nothing is ever raised."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from zhub.process.wakeup import PollingWakeup, RedisWakeup, Wakeup, open_wakeup

TOPIC = "zhub:wake:test"
LONG_S = 60.0  # a wait that only a notification ends before the test fails
SOON_S = 20.0  # generous: machines that run tests are busy


@pytest.fixture
def redis_url(valkey_socket: Path) -> str:
    """Of the server of the fixture ``valkey``, whether it runs or not."""
    return f"unix://{valkey_socket}"


@pytest.fixture(params=["polling", "redis", "redis that never was"])
def wakeup(request: pytest.FixtureRequest, redis_url: str) -> Wakeup:
    if request.param == "redis":
        request.getfixturevalue("valkey")
    return open_wakeup(None if request.param == "polling" else redis_url)


def seconds_of_wait(wakeup: Wakeup, timeout_s: float) -> float:
    started = time.monotonic()
    wakeup.wait(TOPIC, timeout_s)
    return time.monotonic() - started


@contextmanager
def notifying(wakeup: Wakeup) -> Iterator[None]:
    """Notify again and again during the block: nobody knows when the other side has begun to listen."""
    over = Event()

    def notify() -> None:
        while not over.wait(0.05):
            wakeup.notify(TOPIC)

    thread = Thread(target=notify)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("timeout_s", [0.0, 0.3])
def test_a_wait_ends_when_its_time_is_over(wakeup: Wakeup, timeout_s: float) -> None:
    for _ in range(2):
        assert seconds_of_wait(wakeup, timeout_s) < timeout_s + SOON_S


def test_a_wait_that_nobody_ends_lasts_its_time(wakeup: Wakeup) -> None:
    # Or the loops that wait would spin.
    for _ in range(2):
        assert seconds_of_wait(wakeup, 0.3) > 0.25


def test_notifying_raises_nothing_and_does_not_last(wakeup: Wakeup) -> None:
    started = time.monotonic()
    wakeup.notify(TOPIC)
    assert time.monotonic() - started < SOON_S


def test_polling_sleeps_exactly_as_long_as_it_is_told() -> None:
    slept: list[float] = []
    PollingWakeup(slept.append).wait(TOPIC, 1.5)
    assert slept == [1.5]


@pytest.mark.usefixtures("valkey")
def test_a_notification_ends_a_wait(redis_url: str) -> None:
    with notifying(RedisWakeup(redis_url)):
        assert seconds_of_wait(RedisWakeup(redis_url), LONG_S) < SOON_S


@pytest.mark.usefixtures("valkey")
def test_a_notification_between_two_waits_ends_the_second(redis_url: str) -> None:
    wakeup = RedisWakeup(redis_url)
    wakeup.wait(TOPIC, 0.1)
    RedisWakeup(redis_url).notify(TOPIC)
    assert seconds_of_wait(wakeup, LONG_S) < SOON_S


@pytest.mark.usefixtures("valkey")
def test_one_notification_wakes_every_process_that_waits(redis_url: str) -> None:
    lasted: list[float] = []
    waiters = [Thread(target=lambda: lasted.append(seconds_of_wait(RedisWakeup(redis_url), LONG_S))) for _ in range(3)]
    with notifying(RedisWakeup(redis_url)):
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.join()
    assert len(lasted) == 3 and max(lasted) < SOON_S


def test_when_the_server_is_killed_waits_go_on_and_it_is_found_again(
    valkey: Any, redis_url: str, until: Callable[..., Any]
) -> None:
    waiting, other = RedisWakeup(redis_url), RedisWakeup(redis_url)
    waiting.wait(TOPIC, 0.1)
    other.notify(TOPIC)
    assert seconds_of_wait(waiting, LONG_S) < SOON_S
    valkey.kill()
    for _ in range(3):
        assert 0.25 < seconds_of_wait(waiting, 0.3) < SOON_S
        other.notify(TOPIC)
    valkey.start()
    with notifying(other):
        # The first wait may be the one that notices that its connection is gone.
        until(lambda: seconds_of_wait(waiting, 5.0) < 4.0, timeout_s=LONG_S)


def test_a_server_that_is_killed_during_a_wait_does_not_end_it_in_an_error(valkey: Any, redis_url: str) -> None:
    wakeup = RedisWakeup(redis_url)
    wakeup.wait(TOPIC, 0.1)
    lasted: list[float] = []
    waiter = Thread(target=lambda: lasted.append(seconds_of_wait(wakeup, 1.0)))
    waiter.start()
    valkey.kill()
    waiter.join()
    assert 0.9 < lasted[0] < SOON_S


def test_a_frozen_server_holds_nobody_up(valkey: Any, redis_url: str) -> None:
    waiting, fresh = RedisWakeup(redis_url), RedisWakeup(redis_url)
    waiting.wait(TOPIC, 0.1)
    valkey.signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        for wakeup in (waiting, fresh):
            wakeup.notify(TOPIC)
            wakeup.wait(TOPIC, 0.3)
        assert time.monotonic() - started < SOON_S
    finally:
        valkey.signal(signal.SIGCONT)


def test_hearing_nothing_lasts_its_time_and_says_so(wakeup: Wakeup) -> None:
    started = time.monotonic()
    assert wakeup.hear("zhub:wake:nobody:", 0.3) is None
    assert 0.25 < time.monotonic() - started < SOON_S


@pytest.mark.usefixtures("valkey")
def test_what_is_heard_is_the_topic_that_was_notified(redis_url: str) -> None:
    hearing, other = RedisWakeup(redis_url), RedisWakeup(redis_url)
    hearing.hear("zhub:wake:t", 0.1)
    for topic in ("zhub:wake:other", TOPIC):
        other.notify(topic)
    assert hearing.hear("zhub:wake:t", LONG_S) == TOPIC
