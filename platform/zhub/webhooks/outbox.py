"""The outbox: an event is written in the transaction in which it happens, for each endpoint that subscribed to it.

What becomes of the deliveries is in ``zhub.webhooks.deliveries``. Functions take a Session and never commit.
"""

import json
import uuid
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.ids import new_id

# Between one try and the next: the schedule that Standard Webhooks gives as its example, about three days in all.
BACK_OFFS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)


MAX_TRIES = len(BACK_OFFS_S) + 1


def announce(session: Session, org_id: uuid.UUID, project_id: uuid.UUID, event_type: str, data: dict[str, Any]) -> None:
    """Put an event into the outbox of every endpoint of the project that wants it."""
    session.execute(
        text(
            """
            INSERT INTO webhook_deliveries (id, org_id, endpoint_id, event_id, type, data, tries_left)
            SELECT gen_random_uuid(), org_id, id, :event, :type, cast(:data AS jsonb), :tries
              FROM webhook_endpoints
             WHERE org_id = :org AND project_id = :project AND status = 'enabled' AND deleted_at IS NULL
               AND event_types @> to_jsonb(cast(:type AS text))
            """
        ),
        {
            "event": new_id(),
            "type": event_type,
            "data": json.dumps(data),
            "tries": MAX_TRIES,
            "org": org_id,
            "project": project_id,
        },
    )


def announce_job(session: Session, job_id: uuid.UUID) -> None:
    """The same for the state that a job has now; nothing for jobs that no event type speaks of."""
    # One statement beside the change of state, also where nobody listens: it finds no endpoint and writes nothing.
    statement = ANNOUNCE_JOBS.format(jobs="(SELECT * FROM jobs WHERE id = :job)")
    session.execute(text(statement), {"job": job_id, "event": new_id(), "tries": MAX_TRIES})


# For all of ``jobs``, rows of the table with the state that is to be told. Needs :event and :tries.
ANNOUNCE_JOBS = """
    INSERT INTO webhook_deliveries (id, org_id, endpoint_id, event_id, type, data, tries_left)
    SELECT gen_random_uuid(), e.org_id, e.id, :event, told.type, jsonb_build_object('id', told.id), :tries
      FROM {jobs} j
      LEFT JOIN evaluations v ON v.job_id = j.id
     CROSS JOIN LATERAL (
           SELECT CASE WHEN v.id IS NULL THEN 'fine_tuning.job.' ELSE 'evaluation.' END || j.state AS type,
                  CASE WHEN v.id IS NULL THEN 'ftjob-' || replace(cast(j.id AS text), '-', '')
                       ELSE 'eval-' || replace(cast(v.id AS text), '-', '') END AS id) told
      JOIN webhook_endpoints e
        ON e.org_id = j.org_id AND e.project_id = j.project_id AND e.status = 'enabled'
       AND e.deleted_at IS NULL AND e.event_types @> to_jsonb(told.type)
     WHERE j.expert_id IS NOT NULL OR v.id IS NOT NULL
"""
