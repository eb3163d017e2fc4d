"""What an organisation's use has cost: its quantities, each day's by the prices of that day. Nothing is stored of it.

What has no price has no cost: its amount is None, which is not 0. Functions take a Session and never commit.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.tenancy.worker_usage import WORKED, days_of

Group = Literal["project_id", "api_key_id", "expert", "base_model"]
COLUMNS: dict[Group, str] = {
    "project_id": "project_id",
    "api_key_id": "key_id",
    "expert": "expert",
    "base_model": "base_model",
}
UNITS = {
    "worker_hours": "duration_hours",
    "input_tokens": "tokens",
    "cached_input_tokens": "tokens",
    "output_tokens": "tokens",
    "storage": "gibibyte_hours",
}


@dataclass(frozen=True)
class Filter:
    """What is reported; empty: all that the organisation has used. ``lines`` are names of lines."""

    project_ids: Sequence[uuid.UUID] = ()
    key_ids: Sequence[uuid.UUID] = ()
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """What was used: an item, of a cluster or a base where it has one."""

    item: str
    subject: str

    @property
    def name(self) -> str:
        words = self.item.replace("_", " ")
        return f"{words}, {self.subject}" if self.subject else words


@dataclass(frozen=True)
class Cost:
    """What was used of a line on a day; ``quantity`` in the unit that UNITS says. ``amount``: None without a price."""

    day: date
    group: Mapping[Group, Any]
    line: Line
    quantity: Decimal
    amount: Decimal | None


@dataclass(frozen=True)
class Total:
    """The costs of all lines that have a price, None if none has; and the names of those that have none."""

    amount: Decimal | None
    unpriced: Sequence[str]


@dataclass(frozen=True)
class JobCost:
    """What a job's attempts took until now; ``amount``: None where it is not priced, or has not run."""

    worker_seconds: float
    amount: Decimal | None


_PRICE = """
    LEFT JOIN LATERAL (
         SELECT amount FROM prices
          WHERE item = {used}.item AND subject IN ({used}.subject, '') AND valid_from <= {used}.day
          ORDER BY subject DESC, valid_from DESC LIMIT 1) AS price ON true
"""

# An expert is named without its version: what was trained and what answers belong together.
_METERED = f"""
    SELECT day, project_id, key_id, expert, base_model, 'worker_hours' AS item, cluster AS subject,
           worker_seconds::numeric / 3600 AS quantity, 1::numeric AS per
      FROM ({WORKED}) AS worked
     UNION ALL
    SELECT (hour AT TIME ZONE 'UTC')::date, project_id, key_id, regexp_replace(experts, '[@:][^ ]*', '', 'g'),
           base_model, counts.item, base_model, counts.quantity, 1000000
      FROM token_usages CROSS JOIN LATERAL (VALUES
           ('input_tokens', prompt_tokens - cached_tokens), ('cached_input_tokens', cached_tokens),
           ('output_tokens', completion_tokens)) AS counts (item, quantity)
     WHERE org_id = :org AND hour >= cast(:began AS date)::timestamp AT TIME ZONE 'UTC'
       AND hour < cast(:until AS date)::timestamp AT TIME ZONE 'UTC'
     UNION ALL
    SELECT day, project_id, NULL, '', '', 'storage', '', byte_hours / 1073741824,
           24 * extract(day FROM date_trunc('month', day) + interval '1 month' - interval '1 day')
      FROM stored_usages WHERE org_id = :org AND day >= :began AND day < :until
"""


def report(
    session: Session, org_id: uuid.UUID, began: date, until: date, groups: Sequence[Group], only: Filter
) -> list[Cost]:
    """What each line has cost on each day from ``began`` until ``until``, by the groups, in the order of days."""
    columns = "".join(f"{COLUMNS[group]}, " for group in groups)
    rows = session.execute(
        text(
            f"""
            WITH used AS (
                SELECT day, {columns} item, subject, per, sum(quantity) AS quantity FROM ({_METERED}) AS metered
                 WHERE (cardinality(cast(:projects AS uuid[])) = 0 OR project_id = ANY(:projects))
                   AND (cardinality(cast(:keys AS uuid[])) = 0 OR key_id = ANY(:keys))
                 GROUP BY day, {columns} item, subject, per HAVING sum(quantity) > 0)
            SELECT day, {columns} item, subject, quantity, quantity * price.amount / per
              FROM used {_PRICE.format(used="used")} ORDER BY day, {columns} item, subject
            """
        ),
        {"org": org_id, "began": began, "until": until}
        | {"projects": list(only.project_ids), "keys": list(only.key_ids)},
    )
    costs = [
        Cost(day, dict(zip(groups, named, strict=True)), Line(item, subject), quantity, amount)
        for day, *named, item, subject, quantity, amount in rows
    ]
    return [cost for cost in costs if not only.lines or cost.line.name in only.lines]


def total(costs: Iterable[Cost]) -> Total:
    """The sum of costs."""
    amounts: list[Decimal] = []
    unpriced: dict[str, None] = {}
    for cost in costs:
        if cost.amount is None:
            unpriced[cost.line.name] = None
        else:
            amounts.append(cost.amount)
    return Total(sum(amounts, Decimal()) if amounts else None, list(unpriced))


def of_month(session: Session, org_id: uuid.UUID) -> Total:
    """What this calendar month (UTC) has cost so far."""
    month = "date_trunc('month', now() AT TIME ZONE 'UTC')"
    began, until = session.execute(text(f"SELECT {month}::date, ({month} + interval '1 month')::date")).one()
    return total(report(session, org_id, began, until, (), Filter()))


def of_jobs(session: Session, job_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, JobCost]:
    """What the jobs have taken and cost, also those that still run; jobs that never ran are left out."""
    attempts = "(SELECT * FROM attempts WHERE job_id = ANY(:ids))"
    rows = session.execute(
        text(
            f"""
            WITH used AS (SELECT job_id, day, 'worker_hours' AS item, cluster AS subject, worker_seconds
                            FROM ({days_of(attempts)}) AS days)
            SELECT job_id, sum(worker_seconds),
                   CASE WHEN bool_and(price.amount IS NOT NULL)
                        THEN sum(worker_seconds::numeric / 3600 * price.amount) END
              FROM used {_PRICE.format(used="used")} GROUP BY job_id
            """
        ),
        {"ids": list(job_ids)},
    )
    return {job_id: JobCost(float(worker_seconds), amount) for job_id, worker_seconds, amount in rows}
