"""The bytes that organisations store, sampled once an hour: a mean over the day, which nobody escapes at midnight.

What counts is what quotas count (``zhub.tenancy.quotas.stored_bytes``): files, private base models, and stored
completions. An hour in which no scheduler runs is not counted.
"""

from sqlalchemy import text
from sqlalchemy.orm import Session


def sample(session: Session) -> int:
    """Add this hour's bytes of every organisation, unless they were added; return how many rows changed. Sees all rows.

    Cheap when the hour is done: one entry of an index. Several schedulers may do this at once.
    """
    rows = session.execute(
        text(
            """
            WITH hours AS (SELECT date_trunc('hour', now() AT TIME ZONE 'UTC') AS hour
            ), stored AS (
                SELECT org_id, project_id, size_bytes FROM dataset_versions WHERE deleted_at IS NULL
                 UNION ALL
                SELECT org_id, project_id, stored_bytes FROM completion_settings
                 UNION ALL
                SELECT owner_org_id, NULL, (file ->> 'size_bytes')::bigint
                  FROM base_models CROSS JOIN LATERAL jsonb_array_elements(source -> 'files') AS file
                 WHERE private AND owner_org_id IS NOT NULL
            )
            INSERT INTO stored_usages (id, org_id, day, project_id, byte_hours, sampled_at)
            SELECT gen_random_uuid(), org_id, hour::date, project_id, sum(size_bytes), hour AT TIME ZONE 'UTC'
              FROM stored CROSS JOIN hours
             WHERE NOT EXISTS (SELECT FROM stored_usages
                                WHERE sampled_at >= (SELECT hour AT TIME ZONE 'UTC' FROM hours))
             GROUP BY org_id, project_id, hour HAVING sum(size_bytes) > 0
             ORDER BY org_id, project_id
            ON CONFLICT (org_id, day, project_id)
              DO UPDATE SET byte_hours = stored_usages.byte_hours + excluded.byte_hours,
                            sampled_at = excluded.sampled_at
                      WHERE stored_usages.sampled_at < excluded.sampled_at
         RETURNING id
            """
        )
    )
    return len(rows.all())
