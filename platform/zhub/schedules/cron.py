"""The ticks of a cron expression in a time zone, and the policy for missed ticks. Pure functions of times.

``cronsim`` parses the expression and follows Debian's cron. If a change of clocks skips a local time, its tick fires
once, right after the gap. If it repeats a local time, the tick fires once, the first time. Expressions with a star for
the minute or the hour fire at each matching local time, also in a repeated hour, as in cron.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from zhub.errors import InvalidRequestError

Misfire = Literal["skip", "fire_once", "backfill"]

ON_TIME = timedelta(minutes=1)  # a tick that is at most this late is not a misfire
MAX_CATCH_UP_S = 31 * 86400  # older missed ticks are ignored
MAX_NOTED = 100  # missed ticks that get a row of their own


@dataclass(frozen=True)
class Plan:
    """The ticks to ``fire`` now, oldest first; the newest ``missed`` ticks; and the next tick, ``next_at``."""

    fire: Sequence[datetime]
    missed: Sequence[datetime]
    missed_count: int
    next_at: datetime


def check_cron(expression: str, zone: str) -> None:
    """Raise InvalidRequestError, with the parameter at fault, unless cron expression and time zone are valid."""
    _zone(zone)
    if len(expression.split()) != 5:
        raise InvalidRequestError(
            f"cron: '{expression}' has {len(expression.split())} fields; it takes five, minute hour day month weekday: "
            "'0 3 * * 1' is Monday at three.",
            param="cron",
        )
    try:
        next(CronSim(expression, datetime.now(UTC)))
    except CronSimError as exc:
        raise InvalidRequestError(f"cron: '{expression}' cannot be read: {exc}.", param="cron") from exc
    except StopIteration as exc:
        raise InvalidRequestError(f"cron: '{expression}' never comes.", param="cron") from exc


def ticks(expression: str, zone: str, after: datetime) -> Iterator[datetime]:
    """The ticks after ``after``, in UTC, in ascending order."""
    return (tick.astimezone(UTC) for tick in CronSim(expression, after.astimezone(_zone(zone))))


def plan(
    expression: str,
    zone: str,
    next_at: datetime,
    now: datetime,
    *,
    delay: Callable[[datetime], timedelta],
    misfire: Misfire,
    catch_up: timedelta,
    max_backfill: int,
) -> Plan:
    """Decide which ticks, from ``next_at`` until now, fire and which are missed; ``delay`` is the jitter of a tick.

    A tick that is at most a minute late fires. Older ticks are misfires, because no scheduler handled the schedule in
    time. A misfire is not caught up after the window ``catch_up``. Of the others, ``fire_once`` fires the newest,
    ``backfill`` the newest ``max_backfill``, and ``skip`` none.
    """
    # Iterate from the second before next_at, so that next_at is the first tick. Do not start from now: in an hour that
    # a change of clocks repeats, only the earlier ticks show which ticks have already fired.
    began = max(next_at, now - timedelta(seconds=MAX_CATCH_UP_S)) - timedelta(seconds=1)
    due = []
    for tick in ticks(expression, zone, began):
        if tick + delay(tick) > now:
            break
        due.append(tick)
    window = ON_TIME if misfire == "skip" else max(catch_up, ON_TIME)
    max_fired = max_backfill if misfire == "backfill" else 1
    fire = [due_tick for due_tick in due if now - due_tick - delay(due_tick) <= window][-max_fired:]
    missed = due[: len(due) - len(fire)]
    return Plan(fire, missed[-MAX_NOTED:], len(missed), tick)


def jitter(schedule_id: uuid.UUID, tick: datetime, at_most_s: int) -> timedelta:
    """A delay of 0 to ``at_most_s`` seconds, always the same for a tick: it spreads schedules with the same cron."""
    digest = hashlib.sha256(schedule_id.bytes + int(tick.timestamp()).to_bytes(8, "big")).digest()
    return timedelta(seconds=int.from_bytes(digest[:8], "big") % (at_most_s + 1))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise InvalidRequestError(
            f"timezone: '{name}' is no time zone of IANA's; 'Europe/Paris' and 'UTC' are.", param="timezone"
        ) from exc
