"""Budgets: what an organisation may use in a calendar month (UTC), in worker-hours, in money, or in both.

A budget that is used up pauses the organisation's trainings, and lets no job begin; one in money also refuses requests
of models (``zhub_api.spent_budgets``). Organisations are told at 80 and at 100 %.

``usage.charge`` adds ended attempts to ``month_usages``; the query here adds attempts that still run. What a month has
cost is in ``month_costs``. Functions take a Session and never commit; the leader calls them.
"""

import uuid
from dataclasses import dataclass
from datetime import date

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.queue import job_events
from zhub.queue.jobs import KindNames
from zhub.webhooks import endpoints, outbox

HOURS = "worker-hours"
NOTICES = (80, 100)
"""Percentages of a budget that an organisation is told of."""


@dataclass(frozen=True)
class BudgetUse:
    """A budget, and what is used of it in this month. ``unit``: worker-hours, or a currency (ISO 4217)."""

    used: float
    budget: float
    unit: str

    @property
    def is_spent(self) -> bool:
        return self.used >= self.budget

    def sentence(self) -> str:
        shown = "{:.3g}" if self.unit == HOURS else "{:,.2f}"
        return (
            f"Your organisation has used {shown.format(self.used)} of the {shown.format(self.budget)} {self.unit} that "
            f"{'are' if self.unit == HOURS else 'is'} its budget for this month (UTC)"
        )


@dataclass(frozen=True)
class Notice:
    """What an organisation is told once: it has used so many percent of its budget, or more."""

    org_id: uuid.UUID
    month: date
    percent: int
    use: BudgetUse


def spent(session: Session) -> dict[uuid.UUID, BudgetUse]:
    """The organisations that have used up a budget, by id."""
    rows = session.execute(text(f"{_USES} SELECT org_id, used, budget, unit FROM uses WHERE used >= budget"))
    return {row.org_id: BudgetUse(row.used, row.budget, row.unit) for row in rows}


def of_organization(session: Session, org_id: uuid.UUID) -> list[BudgetUse]:
    """The budgets that an organisation has, and what is used of them."""
    rows = session.execute(
        text(f"{_USES} SELECT used, budget, unit FROM uses WHERE org_id = :org ORDER BY unit DESC"), {"org": org_id}
    )
    return [BudgetUse(row.used, row.budget, row.unit) for row in rows]


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


def give_notice(session: Session) -> list[Notice]:
    """Tell organisations by webhook that they have used 80 or 100 % of a budget, once for each size of it."""
    rows = session.execute(
        text(
            f"""
            {_USES}, given AS (
                INSERT INTO budget_notices (id, org_id, month, unit, percent, budget)
                SELECT gen_random_uuid(), org_id, month, unit, percent, budget
                  FROM uses CROSS JOIN unnest(cast(:percents AS int[])) AS percent
                 WHERE used >= budget * percent / 100
                ON CONFLICT DO NOTHING
             RETURNING org_id, month, unit, percent
            )
            SELECT given.*, uses.used, uses.budget FROM given JOIN uses USING (org_id, unit) ORDER BY org_id, percent
            """
        ),
        {"percents": list(NOTICES)},
    )
    notices = [Notice(row.org_id, row.month, row.percent, BudgetUse(row.used, row.budget, row.unit)) for row in rows]
    for notice in notices:
        outbox.announce(session, notice.org_id, None, endpoints.BUDGET, _announced(notice))
    return notices


def _announced(notice: Notice) -> dict[str, object]:
    use = notice.use
    return {
        "id": f"{notice.month:%Y-%m}",
        "percent": notice.percent,
        "used": use.used,
        "budget": use.budget,
        "unit": use.unit,
    }


_USES = f"""
    WITH month AS (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') AS began), uses AS (
    SELECT q.org_id, month.began::date AS month, '{HOURS}' AS unit, q.monthly_worker_hours AS budget,
           ((coalesce(m.worker_seconds, 0) + coalesce(r.worker_seconds, 0)) / 3600)::float AS used
      FROM quotas q CROSS JOIN month
      LEFT JOIN month_usages m ON m.org_id = q.org_id AND m.month = month.began::date
      LEFT JOIN LATERAL (
           SELECT sum(a.workers * extract(epoch FROM now() - greatest(a.created_at, month.began AT TIME ZONE 'UTC')))
                  AS worker_seconds
             FROM attempts a WHERE a.org_id = q.org_id AND a.ended_at IS NULL) r ON true
     WHERE q.monthly_worker_hours IS NOT NULL
     UNION ALL
    SELECT q.org_id, month.began::date, (SELECT currency FROM prices LIMIT 1), q.monthly_budget::float,
           coalesce(c.amount, 0)::float
      FROM quotas q CROSS JOIN month
      LEFT JOIN month_costs c ON c.org_id = q.org_id AND c.month = month.began::date
     WHERE q.monthly_budget IS NOT NULL AND EXISTS (SELECT FROM prices))
"""
