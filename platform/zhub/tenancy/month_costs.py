"""What this month has cost for organisations with a budget in money, computed every few seconds.

Passes of admission and requests of models read it: neither can add up a month.
"""

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.tenancy import costs

EVERY_S = 10.0


def compute_next(session: Session) -> bool:
    """Compute the month of the organisation whose was computed longest ago; False if all are new. Never commits.

    Several schedulers share the organisations: a row that another one has locked is left to it.
    """
    org_id = session.scalar(
        text(
            """
            SELECT q.org_id FROM quotas q
              LEFT JOIN month_costs c
                ON c.org_id = q.org_id AND c.month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
             WHERE q.monthly_budget IS NOT NULL
               AND (c.at IS NULL OR c.at < now() - make_interval(secs => :every))
             ORDER BY c.at NULLS FIRST LIMIT 1 FOR UPDATE OF q SKIP LOCKED
            """
        ),
        {"every": EVERY_S},
    )
    if org_id is None:
        return False
    session.execute(
        text(
            """
            INSERT INTO month_costs (id, org_id, month, amount, at)
            VALUES (gen_random_uuid(), :org, date_trunc('month', now() AT TIME ZONE 'UTC')::date, :amount, now())
            ON CONFLICT (org_id, month) DO UPDATE SET amount = excluded.amount, at = excluded.at
            """
        ),
        {"org": org_id, "amount": costs.of_month(session, org_id).amount or 0},
    )
    return True
