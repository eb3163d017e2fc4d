"""Budgets: worker-hours that an organisation may use in a calendar month (UTC). A spent budget pauses its trainings.

``usage.charge`` adds ended attempts to ``month_usages``; the query here adds attempts that still run. Functions take a
Session and never commit; the leader calls them.
"""

import uuid
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.queue import job_events
from zhub.queue.jobs import KindNames


@dataclass(frozen=True)
class Spent:
    """A spent budget, in worker-hours of this month."""

    used_h: float
    budget_h: float

    def sentence(self) -> str:
        return (
            f"Your organisation has used {self.used_h:.3g} of the {self.budget_h:.3g} worker-hours that are its budget "
            "for this month (UTC)"
        )


def spent(session: Session) -> dict[uuid.UUID, Spent]:
    """The organisations whose budget is spent, by id."""
    return {row.org_id: Spent(row.used_h, row.budget_h) for row in session.execute(text(_SPENT))}


def pause_spent(session: Session, kinds: KindNames) -> int:
    """Pause the resumable jobs of organisations whose budget is spent, with a checkpoint each; return how many.

    Users resume them once the budget allows it. Other jobs go on: they have no checkpoint, and end soon.
    """
    spent_budgets = spent(session)
    if not spent_budgets:
        return 0
    rows = session.execute(
        text(
            """
            UPDATE jobs SET desired = 'pause'
             WHERE id IN (SELECT id FROM jobs
                           WHERE org_id = ANY(:orgs) AND kind = ANY(:resumable) AND desired = 'run'
                             AND state IN ('admitted', 'starting', 'running', 'stopping') ORDER BY id FOR UPDATE)
         RETURNING id, org_id
            """
        ),
        {"orgs": list(spent_budgets), "resumable": kinds.resumable},
    ).all()
    for row in rows:
        message = f"{spent_budgets[row.org_id].sentence()}: the job is paused. Resume it next month, or ask for more."
        job_events.add(session, row.org_id, row.id, message, level="warn")
    return len(rows)


_SPENT = """
    WITH month AS (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AS began)
    SELECT q.org_id, q.monthly_worker_hours AS budget_h,
           ((coalesce(m.worker_seconds, 0) + coalesce(r.worker_seconds, 0)) / 3600)::float AS used_h
      FROM quotas q CROSS JOIN month
      LEFT JOIN month_usages m ON m.org_id = q.org_id AND m.month = month.began::date
      LEFT JOIN LATERAL (
           SELECT sum(a.workers * extract(epoch FROM now() - greatest(a.created_at, month.began AT TIME ZONE 'UTC')))
                  AS worker_seconds
             FROM attempts a WHERE a.org_id = q.org_id AND a.ended_at IS NULL) r ON true
     WHERE q.monthly_worker_hours IS NOT NULL
       AND coalesce(m.worker_seconds, 0) + coalesce(r.worker_seconds, 0) >= 3600 * q.monthly_worker_hours
"""
