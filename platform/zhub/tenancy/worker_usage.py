"""The time of workers that an organisation's jobs took, by the day: reported, and the SQL that costs are made of.

``zhub.admission.usage.charge`` adds attempts that have ended to ``worker_usages``. Attempts that still run, or have
ended within the last second, are added here to what is reported, so that a training of three days is seen from its
first one on.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.orm import Session

Group = Literal["project_id", "api_key_id", "cluster", "kind", "expert", "base_model"]
COLUMNS: dict[Group, str] = {
    "project_id": "project_id",
    "api_key_id": "key_id",
    "cluster": "cluster",
    "kind": "kind",
    "expert": "expert",
    "base_model": "base_model",
}


@dataclass(frozen=True)
class Filter:
    """Whose time is reported; empty: all of the organisation's."""

    project_ids: Sequence[uuid.UUID] = ()
    key_ids: Sequence[uuid.UUID] = ()


@dataclass(frozen=True)
class Worked:
    """What workers did on a day for what it is grouped by."""

    day: date
    group: Mapping[str, Any]
    worker_seconds: float
    trained_tokens: int


def days_of(attempts: str) -> str:
    """A query with a row for each attempt and day (UTC) that it ran in; ``attempts`` is a table or a subquery of them.

    Its columns are those of ``worker_usages``, and ``job_id``. The tokens of a training count on its last day.
    """
    return f"""
        SELECT a.org_id, a.job_id, j.project_id, k.id AS key_id, began::date AS day, j.cluster, j.kind,
               coalesce(p.name || '.' || e.name, '') AS expert, coalesce(b.name, '') AS base_model,
               a.workers * extract(epoch FROM
                   least(coalesce(a.ended_at, now()), (began + interval '1 day') AT TIME ZONE 'UTC')
                 - greatest(a.created_at, began AT TIME ZONE 'UTC'))::float AS worker_seconds,
               CASE WHEN a.outcome = 'succeeded' AND began = date_trunc('day', a.ended_at AT TIME ZONE 'UTC')
                    THEN coalesce(j.trained_tokens, 0) ELSE 0 END AS trained_tokens
          FROM {attempts} a
          JOIN jobs j ON j.id = a.job_id
          JOIN projects p ON p.id = j.project_id
          LEFT JOIN api_keys k ON k.id = j.asked_by AND k.org_id = j.org_id
          LEFT JOIN evaluations m ON m.job_id = j.id
          LEFT JOIN expert_exports x ON x.job_id = j.id
          LEFT JOIN expert_versions v ON v.id = coalesce(m.version_id, x.version_id)
          LEFT JOIN experts e ON e.id = coalesce(j.expert_id, v.expert_id)
          LEFT JOIN base_models b ON b.id = j.base_model_id
         CROSS JOIN LATERAL generate_series(
               date_trunc('day', a.created_at AT TIME ZONE 'UTC'),
               coalesce(a.ended_at, now()) AT TIME ZONE 'UTC', interval '1 day') AS began
         WHERE a.workers > 0
    """


# Two indexes find the attempts that are not charged yet, ix_attempts_open and ix_attempts_charge: a bitmap of both.
_NOT_CHARGED = """(SELECT * FROM attempts
                    WHERE org_id = :org AND (ended_at IS NULL OR (ended_at IS NOT NULL AND NOT charged)))"""

WORKED = f"""
    SELECT day, project_id, key_id, cluster, kind, expert, base_model, worker_seconds, trained_tokens
      FROM worker_usages WHERE org_id = :org AND day >= :began AND day < :until
     UNION ALL
    SELECT day, project_id, key_id, cluster, kind, expert, base_model, worker_seconds, trained_tokens
      FROM ({days_of(_NOT_CHARGED)}) AS running WHERE day >= :began AND day < :until
"""
"""The time of an organisation's workers in a span of days, as of now. Needs :org, :began and :until, two dates."""


def report(
    session: Session, org_id: uuid.UUID, began: date, until: date, groups: Sequence[Group], only: Filter
) -> list[Worked]:
    """The time of workers on each day from ``began`` until ``until``; days without any are left out."""
    columns = [COLUMNS[group] for group in groups]
    listed = ", ".join(["day", *columns])
    rows = session.execute(
        text(
            f"""
            SELECT {listed}, sum(worker_seconds), sum(trained_tokens) FROM ({WORKED}) AS worked
             WHERE (cardinality(cast(:projects AS uuid[])) = 0 OR project_id = ANY(:projects))
               AND (cardinality(cast(:keys AS uuid[])) = 0 OR key_id = ANY(:keys))
             GROUP BY {listed} HAVING sum(worker_seconds) > 0 ORDER BY {listed}
            """
        ),
        {"org": org_id, "began": began, "until": until}
        | {"projects": list(only.project_ids), "keys": list(only.key_ids)},
    )
    return [Worked(row[0], dict(zip(groups, row[1:-2], strict=True)), float(row[-2]), int(row[-1])) for row in rows]
