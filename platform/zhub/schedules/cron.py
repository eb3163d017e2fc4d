"""When a schedule fires: cron expressions in a time zone, and what becomes of ticks that nobody was there for.

Pure functions of times. The expression is read by ``cronsim``, which follows Debian's cron: a local time that a change
of clocks skips fires once, right after the gap; one that it repeats fires once, the first time. Expressions with a star
for the minute or the hour fire whenever the clock on the wall says so, as cron's do.
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

ON_TIME = timedelta(minutes=1)  # a tick that is looked at this late was not missed
MAX_CATCH_UP_S = 31 * 86400  # what was missed earlier is not even looked at
MAX_NOTED = 100  # missed ticks that get a row of their own


@dataclass(frozen=True)
class Plan:
    """What is due now: ``fire``, oldest first; ``missed``, the newest of those that are not; and the tick to come."""

    fire: Sequence[datetime]
    missed: Sequence[datetime]
    missed_count: int
    next_at: datetime


def check_cron(expression: str, zone: str) -> None:
    """Raise InvalidRequestError, with the parameter at fault, unless this is an expression of cron in a known zone."""
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
    """The times after ``after``, in UTC and in their order."""
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
    """What to do now about the tick ``next_at`` and all since; ``delay`` is the jitter of a tick.

    A tick that is looked at within a minute of its time fires. One that was missed, because no scheduler ran or the
    schedule could not be looked at, is past help after ``catch_up``; of the others ``fire_once`` fires the newest,
    ``backfill`` the newest ``max_backfill``, ``skip`` none.
    """
    # From the second before, so that next_at itself is the first; and on from there, not from now: within an hour that
    # a change of clocks repeats, only the ticks before tell which of them were had already.
    began = max(next_at, now - timedelta(seconds=MAX_CATCH_UP_S)) - timedelta(seconds=1)
    due = []
    for later in ticks(expression, zone, began):
        if later + delay(later) > now:
            break
        due.append(later)
    late = ON_TIME if misfire == "skip" else max(catch_up, ON_TIME)
    wanted = max_backfill if misfire == "backfill" else 1
    fire = [tick for tick in due if now - tick - delay(tick) <= late][-wanted:]
    missed = due[: len(due) - len(fire)]
    return Plan(fire, missed[-MAX_NOTED:], len(missed), later)


def jitter(schedule_id: uuid.UUID, tick: datetime, at_most_s: int) -> timedelta:
    """A delay of 0 to ``at_most_s`` seconds, the same whenever it is asked for: many schedules of one hour spread."""
    digest = hashlib.sha256(schedule_id.bytes + int(tick.timestamp()).to_bytes(8, "big")).digest()
    return timedelta(seconds=int.from_bytes(digest[:8], "big") % (at_most_s + 1))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise InvalidRequestError(
            f"timezone: '{name}' is no time zone of IANA's; 'Europe/Paris' and 'UTC' are.", param="timezone"
        ) from exc
