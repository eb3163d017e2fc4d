"""What all buckets promise: a minute's requests at once, then an even rate; nothing waits for a Redis that is away."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from zhub.process import buckets
from zhub.process.buckets import KEYS, Buckets, MemoryBuckets, RedisBuckets, open_buckets

Pass = Callable[[float], None]


class Clock:
    """The time that buckets in memory see."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def redis_url(valkey_socket: Path) -> str:
    """Of the server of the fixture ``valkey``, whether it runs or not."""
    return f"unix://{valkey_socket}"


@pytest.fixture(params=["memory", "redis"])
def made(request: pytest.FixtureRequest, redis_url: str) -> tuple[Buckets, Pass]:
    """Buckets, and how to let seconds pass for them. Redis has its own clock, so what it keeps is made older."""
    if request.param == "memory":
        clock = Clock()

        def turn(seconds: float) -> None:
            clock.now += seconds

        return MemoryBuckets(clock), turn
    request.getfixturevalue("valkey")
    client = redis.Redis.from_url(redis_url)

    def age(seconds: float) -> None:
        for key in client.keys(f"{KEYS}*"):
            client.set(key, float(client.get(key) or 0) - seconds, ex=120)

    return RedisBuckets(redis_url), age


def passed(of: Buckets, tries: int, *, key: str = "acme", limit: int = 6) -> int:
    return sum(not of.take(key, limit).retry_after_s for _ in range(tries))


def test_a_minutes_requests_pass_at_once_and_then_as_many_as_come_back(made: tuple[Buckets, Pass]) -> None:
    of, wait = made
    assert passed(of, 10) == 6
    wait(20)
    assert passed(of, 10) == 2
    wait(1000)
    assert passed(of, 10) == 6


def test_a_standing_says_what_is_left_and_when_to_come_again(made: tuple[Buckets, Pass]) -> None:
    of, _ = made
    standings = [of.take("acme", 3) for _ in range(4)]
    assert [standing.remaining for standing in standings] == [2, 1, 0, 0]
    assert [round(standing.reset_s / 20) for standing in standings] == [1, 2, 3, 3]
    assert [standing.retry_after_s for standing in standings[:3]] == [0, 0, 0]
    assert 15 < standings[3].retry_after_s <= 20


@pytest.mark.parametrize("limit", [1, 7, 13, 12_000])
def test_no_token_is_lost_to_rounding(made: tuple[Buckets, Pass], limit: int) -> None:
    assert passed(made[0], limit, limit=limit) == limit


def test_one_keys_requests_are_not_anothers(made: tuple[Buckets, Pass]) -> None:
    assert passed(made[0], 2, limit=1) == 1
    assert passed(made[0], 2, limit=1, key="globex") == 1


def test_a_limit_that_is_changed_holds_from_the_next_request_on(made: tuple[Buckets, Pass]) -> None:
    of, wait = made
    assert passed(of, 100, limit=60) == 60
    wait(40)
    assert passed(of, 100, limit=6) == 4


def test_threads_take_no_token_twice(made: tuple[Buckets, Pass]) -> None:
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(passed(made[0], 20, limit=50))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) in (50, 51)  # a token may come back meanwhile


def test_processes_with_one_redis_count_together(redis_url: str, valkey: Any) -> None:
    one, other = RedisBuckets(redis_url), RedisBuckets(redis_url)
    assert passed(one, 4) + passed(other, 4) == 6


def test_without_redis_a_process_counts_by_itself() -> None:
    assert isinstance(open_buckets(None), MemoryBuckets)


@pytest.mark.parametrize("harm", ["stopped", "frozen"])
def test_while_redis_is_away_a_process_counts_by_itself_and_says_so_once(
    redis_url: str, valkey: Any, harm: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = RedisBuckets(redis_url)
    assert passed(of, 2) == 2
    valkey.kill() if harm == "stopped" else valkey.signal(signal.SIGSTOP)
    with caplog.at_level(logging.INFO, "zhub.buckets"):
        assert passed(of, 20) == 6
        assert [record.action for record in caplog.records] == ["buckets_apart"]  # type: ignore[attr-defined]
        valkey.start() if harm == "stopped" else valkey.signal(signal.SIGCONT)
        monkeypatch.setattr(buckets, "RETRY_AFTER_S", 0.0)
        of._retry_at = 0.0
        passed(of, 1)
    assert [record.action for record in caplog.records] == ["buckets_apart", "buckets_together"]  # type: ignore[attr-defined]


def test_of_a_redis_that_is_away_one_request_in_a_while_asks(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = RedisBuckets(redis_url)
    asked: list[object] = []

    def refuse(**options: object) -> None:
        asked.append(options)
        raise redis.ConnectionError("nobody listens")

    monkeypatch.setattr(of, "_take", refuse)
    assert passed(of, 20) == 6
    assert len(asked) == 1
