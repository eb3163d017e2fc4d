"""Usage: the leader charges the worker-seconds of ended attempts to their organisations."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.admission.fair_share import HALF_LIFE_S
from zhub.tenancy.worker_usage import days_of


def charge(session: Session) -> dict[tuple[str, str], int]:
    """Add the worker-seconds of newly ended attempts to their organisations' usage; count them by (kind, outcome).

    Three sums in one statement: what fair share decays, what the month's budget counts, and what costs are made of, by
    the day. The transaction that ends an attempt does not do this: all attempts of an organisation would wait for one
    row lock.
    """
    rows = session.execute(
        text(
            f"""
            WITH ended AS (
                UPDATE attempts SET charged = true WHERE ended_at IS NOT NULL AND NOT charged
             RETURNING org_id, job_id, outcome, workers * extract(epoch FROM ended_at - created_at) AS worker_seconds,
                       date_trunc('month', ended_at AT TIME ZONE 'UTC') AS month, workers, created_at, ended_at
            ), in_month AS (
            INSERT INTO month_usages (id, org_id, month, worker_seconds)
                 SELECT gen_random_uuid(), org_id, month::date,
                        sum(workers * extract(epoch FROM ended_at - greatest(created_at, month AT TIME ZONE 'UTC')))
                   FROM ended WHERE worker_seconds > 0 GROUP BY org_id, month
            ON CONFLICT (org_id, month)
              DO UPDATE SET worker_seconds = month_usages.worker_seconds + excluded.worker_seconds
            ), charged AS (
            INSERT INTO usages (id, org_id, cluster, worker_seconds)
                 SELECT gen_random_uuid(), ended.org_id, jobs.cluster, sum(ended.worker_seconds)
                   FROM ended JOIN jobs ON jobs.id = ended.job_id
                  GROUP BY ended.org_id, jobs.cluster HAVING sum(ended.worker_seconds) > 0
            ON CONFLICT (org_id, cluster) DO UPDATE SET at = now(), worker_seconds = excluded.worker_seconds
                + usages.worker_seconds * power(0.5, extract(epoch FROM now() - usages.at) / :half_life)
            ), by_day AS (
            INSERT INTO worker_usages (id, org_id, day, project_id, key_id, cluster, kind, expert, base_model,
                                       worker_seconds, trained_tokens)
                 SELECT gen_random_uuid(), org_id, day, project_id, key_id, cluster, kind, expert, base_model,
                        sum(worker_seconds), sum(trained_tokens)
                   FROM ({days_of("ended")}) AS days
                  GROUP BY org_id, day, project_id, key_id, cluster, kind, expert, base_model
                 HAVING sum(worker_seconds) > 0
            ON CONFLICT (org_id, day, project_id, key_id, cluster, kind, expert, base_model)
              DO UPDATE SET worker_seconds = worker_usages.worker_seconds + excluded.worker_seconds,
                            trained_tokens = worker_usages.trained_tokens + excluded.trained_tokens
            )
            SELECT jobs.kind, ended.outcome, count(*) AS attempts
              FROM ended JOIN jobs ON jobs.id = ended.job_id GROUP BY jobs.kind, ended.outcome
            """
        ),
        {"half_life": HALF_LIFE_S},
    )
    return {(row.kind, row.outcome): row.attempts for row in rows}
