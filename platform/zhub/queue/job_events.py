"""The events of a job: writing them, and reading them newest first in pages, oldest first, or as metric series.

Events are ordered by (``xid``, ``position``): by the transaction that wrote them, then by their number. The order is
final for all transactions older than the oldest open one. A reader that stops there, and continues after its last
event, misses no event and sees none twice. Functions take a Session and never commit.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, func, literal_column, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.errors import NotFoundError
from zhub.ids import new_id, public_id
from zhub.models import JobEvent
from zhub.queue import checkpoints

Cursor = tuple[int, int]
START: Cursor = (0, 0)
_KEY = (JobEvent.xid, JobEvent.position)
_HORIZON: ColumnElement[int] = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")


@dataclass(frozen=True)
class Event:
    """An event that an attempt reports; ``seq`` counts from 1 within the attempt."""

    seq: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None = None


@dataclass(frozen=True)
class MetricSeries:
    """One metric of a job. ``count`` is how many points it has, ``points`` are those that are kept, by step."""

    name: str
    count: int
    points: Sequence[dict[str, Any]]


def add(
    session: Session,
    org_id: uuid.UUID,
    job_id: uuid.UUID,
    message: str,
    *,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """Write an event of a job that its attempt did not report."""
    session.add(JobEvent(org_id=org_id, job_id=job_id, message=message, level=level, data=data))
    session.flush()


def store(session: Session, org_id: uuid.UUID, job_id: uuid.UUID, fence: int, events: Sequence[Event]) -> None:
    """Append the events that an attempt reported, and record their checkpoints; skip events that are already stored.

    Raises:
        ValueError: the report of a checkpoint is malformed.
    """
    if events:
        values = [
            {
                "id": new_id(),
                "org_id": org_id,
                "job_id": job_id,
                "fence": fence,
                "seq": event.seq,
                "level": event.level,
                "type": event.type,
                "message": event.message,
                "data": event.data,
            }
            for event in events
        ]
        new = session.scalars(insert(JobEvent).values(values).on_conflict_do_nothing().returning(JobEvent.seq)).all()
        for event in events:
            # The checkpoint of an event that was stored before has its row already, or has been swept.
            if event.seq in new and event.data is not None and event.data.get("type") == "checkpoint":
                checkpoints.record(session, org_id, job_id, fence, event.data)


def last_seq(session: Session, job_id: uuid.UUID, fence: int) -> int:
    """The number of an attempt's last stored event: after a restart, the agent polls from there."""
    return session.scalar(
        select(func.coalesce(func.max(JobEvent.seq), 0)).where(JobEvent.job_id == job_id, JobEvent.fence == fence)
    ) or 0  # fmt: skip


def cursor_of(session: Session, job_id: uuid.UUID, event_id: uuid.UUID) -> Cursor:
    """The cursor of an event of the job. Raises NotFoundError."""
    row = session.execute(select(*_KEY).where(JobEvent.id == event_id, JobEvent.job_id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError("event", public_id("event", event_id))
    return row.xid, row.position


def list_newest(
    session: Session, job_id: uuid.UUID, *, before: Cursor | None, limit: int
) -> tuple[list[JobEvent], bool]:
    """The newest events ``before`` a cursor, newest first, and whether there are more."""
    # Plan at 10^6 events, half of them of one job: the next :limit + 1 entries of ix_job_events_job, backwards; 0.1 ms.
    statement = select(JobEvent).where(JobEvent.job_id == job_id)
    if before is not None:
        statement = statement.where(tuple_(*_KEY) < before)
    events = list(session.scalars(statement.order_by(*(column.desc() for column in _KEY)).limit(limit + 1)))
    return events[:limit], len(events) > limit


def list_final(session: Session, job_id: uuid.UUID, *, after: Cursor, limit: int) -> tuple[list[JobEvent], bool]:
    """The next events ``after`` a cursor whose order is final, oldest first, and whether these are all visible events.

    Events whose order is not final follow once older transactions have ended.
    """
    rows = session.execute(
        # Plan at 10^6 events, half of them of one job: the next :limit + 1 entries of ix_job_events_job; 0.1 ms.
        select(JobEvent, JobEvent.xid < _HORIZON)
        .where(JobEvent.job_id == job_id, tuple_(*_KEY) > after)
        .order_by(*_KEY)
        .limit(limit + 1)
    ).all()
    final = [event for event, is_final in rows[:limit] if is_final]
    return final, len(final) == len(rows)


def metric_series(session: Session, job_id: uuid.UUID, *, points: int) -> list[MetricSeries]:
    """A series for each metric that the job reported by step, by name, with at most ``points`` points (4 or more).

    A longer series keeps its first and last point. The points between are divided into ``(points - 2) / 2`` stretches,
    and each stretch keeps its lowest and its highest. Points of an attempt after the step from which a later attempt
    resumed are left out.
    """
    rows = session.execute(text(_SERIES), {"job": job_id, "points": points, "stretches": (points - 2) // 2}).all()
    return [
        MetricSeries(name, of_name[0].total, [{"step": row.step, "value": row.value} for row in of_name])
        for name, group in groupby(rows, attrgetter("name"))
        for of_name in [list(group)]
    ]


_SERIES = """
    WITH measured AS (
        SELECT coalesce(fence, 0) AS fence, cast(data ->> 'step' AS bigint) AS step, data, xid, position
          FROM job_events
         WHERE job_id = :job AND jsonb_typeof(data -> 'step') = 'number'
           AND (type = 'metrics' OR data ->> 'type' = 'metrics')
    ), begun AS (
        -- Step 0 is the base, which every attempt measures, also one that resumes from a checkpoint.
        SELECT fence, min(step) FILTER (WHERE step > 0) AS step FROM measured GROUP BY fence
    ), kept AS (
        SELECT DISTINCT ON (metric.key, m.step)
               metric.key AS name, m.step, cast(metric.value AS double precision) AS value
          FROM measured m
         CROSS JOIN LATERAL jsonb_each(m.data) metric
         WHERE metric.key <> 'step' AND jsonb_typeof(metric.value) = 'number'
           AND NOT EXISTS (SELECT FROM begun WHERE begun.fence > m.fence AND begun.step <= m.step)
         ORDER BY metric.key, m.step, m.xid DESC, m.position DESC
    ), numbered AS (
        SELECT *, count(*) OVER (PARTITION BY name) AS total,
               row_number() OVER (PARTITION BY name ORDER BY step) - 1 AS position
          FROM kept
    ), stretched AS (
        SELECT *, CASE WHEN total <= :points THEN position
                       WHEN position = 0 THEN -1
                       WHEN position = total - 1 THEN :stretches
                       ELSE (position - 1) * :stretches / (total - 2) END AS stretch
          FROM numbered
    ), ranked AS (
        SELECT *, row_number() OVER (PARTITION BY name, stretch ORDER BY value, step) AS from_below,
               row_number() OVER (PARTITION BY name, stretch ORDER BY value DESC, step) AS from_above
          FROM stretched
    )
    SELECT name, total, step, value FROM ranked WHERE from_below = 1 OR from_above = 1 ORDER BY name, step
"""
