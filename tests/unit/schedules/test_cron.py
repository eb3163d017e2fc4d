"""Cron expressions in time zones, against a walk over every minute, and what becomes of missed ticks."""

import itertools
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhub.errors import InvalidRequestError
from zhub.schedules import cron
from zhub.schedules.cron import Plan

MINUTE = timedelta(minutes=1)


def first(expression: str, zone: str, after: str, count: int = 3) -> list[str]:
    start = datetime.fromisoformat(after).replace(tzinfo=UTC)
    found = itertools.islice(cron.ticks(expression, zone, start), count)
    return [tick.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for tick in found]


@pytest.mark.parametrize(
    ("zone", "after", "expected"),
    [
        # 02:30 does not exist: it fires right after the gap, and no second time.
        ("Europe/Paris", "2026-03-28T12:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        # 02:30 comes twice: the first one fires.
        ("Europe/Paris", "2026-10-24T12:00", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ("America/New_York", "2026-03-07T12:00", ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"]),
        # Its clocks change by half an hour, from 02:00 to 02:30.
        ("Australia/Lord_Howe", "2026-10-03T02:00", ["2026-10-04T02:30+11:00", "2026-10-05T02:30+11:00"]),
        ("UTC", "2026-03-28T12:00", ["2026-03-29T02:30+00:00", "2026-03-30T02:30+00:00"]),
    ],
)
def test_a_daily_time_fires_once_a_day_whatever_the_clocks_do(zone: str, after: str, expected: list[str]) -> None:
    assert first("30 2 * * *", zone, after, 2) == expected


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("month", [3, 4, 10, 11])
def test_no_day_has_two_or_no_ticks_of_a_daily_time(zone: str, month: int) -> None:
    for hour in (1, 2, 3):
        found = first(f"15 {hour} * * *", zone, f"2026-{month:02}-01T00:00", 40)
        days = [datetime.fromisoformat(tick).date() for tick in found]
        assert all(later - earlier == timedelta(days=1) for earlier, later in itertools.pairwise(days))


def test_every_half_hour_goes_on_through_the_hour_that_comes_twice() -> None:
    found = list(
        itertools.islice(cron.ticks("*/30 * * * *", "Europe/Paris", datetime(2026, 10, 24, 22, tzinfo=UTC)), 20)
    )
    assert all(later - earlier == timedelta(minutes=30) for earlier, later in itertools.pairwise(found))


FIELDS = {
    "minute": st.one_of(st.just("*"), st.integers(0, 59).map(str), st.integers(1, 30).map("*/{}".format)),
    "hour": st.one_of(st.just("*"), st.integers(0, 23).map(str), st.just("8-17")),
    "weekday": st.one_of(st.just("*"), st.integers(0, 6).map(str), st.just("1-5")),
}


def matches(field: str, value: int, low: int) -> bool:
    if field == "*":
        return True
    if field.startswith("*/"):
        return (value - low) % int(field[2:]) == 0
    start, _, end = field.partition("-")
    return int(start) <= value <= int(end or start)


@settings(max_examples=30)
@given(minute=FIELDS["minute"], hour=FIELDS["hour"], weekday=FIELDS["weekday"], day=st.integers(0, 300))
def test_the_next_tick_is_the_first_minute_that_matches(minute: str, hour: str, weekday: str, day: int) -> None:
    start = datetime(2026, 1, 1, 11, 7, 30, tzinfo=UTC) + timedelta(days=day)
    found = next(cron.ticks(f"{minute} {hour} * * {weekday}", "UTC", start))
    walked = start.replace(second=0) + MINUTE
    while not (
        matches(minute, walked.minute, 0)
        and matches(hour, walked.hour, 0)
        and matches(weekday, walked.isoweekday() % 7, 0)
    ):
        walked += MINUTE
    assert found == walked


@pytest.mark.parametrize(
    ("expression", "zone", "param", "says"),
    [
        ("61 * * * *", "UTC", "cron", "minute"),
        ("* * * *", "UTC", "cron", "has 4 fields"),
        ("* * * * * *", "UTC", "cron", "has 6 fields"),
        ("@daily", "UTC", "cron", "five"),
        ("0 0 30 2 *", "UTC", "cron", "day-of-month"),
        ("0 3 * * 1", "Mars/Olympus", "timezone", "no time zone"),
        ("0 3 * * 1", "../etc/passwd", "timezone", "no time zone"),
        ("0 3 * * 1", "", "timezone", "no time zone"),
    ],
)
def test_what_is_no_cron_expression_or_zone_is_refused(expression: str, zone: str, param: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        cron.check_cron(expression, zone)
    assert caught.value.param == param


# What is due


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-06-{text}").replace(tzinfo=UTC)


def due(
    now: str, *, next_at: str = "01T03:00", zone: str = "UTC", delay: timedelta = timedelta(0), **policy: Any
) -> Plan:
    options: dict[str, Any] = {"misfire": "fire_once", "catch_up": timedelta(days=1), "max_backfill": 3} | policy
    return cron.plan("0 3 * * *", zone, at(next_at), at(now), delay=lambda _tick: delay, **options)


def test_nothing_is_due_before_its_time() -> None:
    assert due("01T02:59") == Plan([], [], 0, at("01T03:00"))


@pytest.mark.parametrize("misfire", ["skip", "fire_once", "backfill"])
def test_a_tick_on_time_fires_whatever_the_policy(misfire: str) -> None:
    assert due("01T03:00:40", misfire=misfire) == Plan([at("01T03:00")], [], 0, at("02T03:00"))


@pytest.mark.parametrize(
    ("policy", "fire"),
    [
        ({"misfire": "skip"}, []),
        ({"misfire": "fire_once"}, ["04T03:00"]),
        ({"misfire": "fire_once", "catch_up": timedelta(hours=2)}, []),
        ({"misfire": "backfill", "catch_up": timedelta(days=30)}, ["02T03:00", "03T03:00", "04T03:00"]),
        ({"misfire": "backfill"}, ["04T03:00"]),
        ({"misfire": "backfill", "catch_up": timedelta(days=30), "max_backfill": 1}, ["04T03:00"]),
    ],
)
def test_what_becomes_of_ticks_that_were_missed(policy: dict[str, Any], fire: list[str]) -> None:
    found = due("04T10:00", **policy)
    ticks = [at(f"0{day}T03:00") for day in (1, 2, 3, 4)]
    assert found.fire == [at(tick) for tick in fire]
    assert list(found.missed) == [tick for tick in ticks if tick not in found.fire]
    assert (found.missed_count, found.next_at) == (4 - len(fire), at("05T03:00"))


def test_a_tick_fires_after_its_jitter_and_counts_as_on_time_then() -> None:
    assert due("01T03:10", delay=timedelta(minutes=20)).fire == []
    assert due("01T03:20:30", delay=timedelta(minutes=20), misfire="skip").fire == [at("01T03:00")]


def test_a_time_that_comes_twice_is_not_due_again_in_its_second_hour() -> None:
    # 02:30 in Paris on 25 October comes at 00:30 and at 01:30 UTC.
    once, again = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 15, tzinfo=UTC)
    options: dict[str, Any] = {"misfire": "fire_once", "catch_up": timedelta(days=1), "max_backfill": 1}
    for now in (once, again):
        found = cron.plan("30 2 * * *", "Europe/Paris", once, now, delay=lambda _tick: timedelta(0), **options)
        assert (found.fire, found.next_at) == ([once], datetime(2026, 10, 26, 1, 30, tzinfo=UTC))


def test_a_long_outage_is_looked_at_up_to_a_bound_and_its_newest_tick_fires() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    now = start + timedelta(days=300)
    found = cron.plan(
        "*/10 * * * *",
        "UTC",
        start,
        now,
        delay=lambda _tick: timedelta(0),
        misfire="fire_once",
        catch_up=timedelta(days=1),
        max_backfill=1,
    )
    assert (found.missed_count, len(found.missed)) == (cron.MAX_CATCH_UP_S / 600, cron.MAX_NOTED)
    assert (found.fire, found.next_at) == ([now], now + timedelta(minutes=10))


@given(st.integers(0, 3600), st.integers(0, 10**6))
def test_jitter_is_within_its_bound_and_always_the_same(at_most_s: int, minutes: int) -> None:
    tick = datetime(2026, 1, 1, tzinfo=UTC) + minutes * MINUTE
    schedule_id = uuid.UUID(int=minutes)
    found = cron.jitter(schedule_id, tick, at_most_s)
    assert timedelta(0) <= found <= timedelta(seconds=at_most_s)
    assert found == cron.jitter(schedule_id, tick.astimezone(ZoneInfo("Asia/Tokyo")), at_most_s)


def test_schedules_of_one_hour_are_spread_by_jitter() -> None:
    delays = {cron.jitter(uuid.UUID(int=number), at("01T03:00"), 3600) for number in range(50)}
    assert len(delays) > 40
