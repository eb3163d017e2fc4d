"""The outbox: the transaction that changes a job also writes a delivery for each endpoint that wants the event.

``zhub.webhooks.deliveries`` sends the deliveries. Functions take a Session and never commit.
"""

import json
import uuid
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.ids import new_id

# The waits between tries: the example schedule of Standard Webhooks, about three days in all.
BACK_OFFS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)


MAX_TRIES = len(BACK_OFFS_S) + 1


def announce(
    session: Session, org_id: uuid.UUID, project_id: uuid.UUID | None, event_type: str, data: dict[str, Any]
) -> None:
    """Put an event into the outbox of every endpoint of the project that wants it; None: of the whole organisation."""
    session.execute(
        text(
            """
            INSERT INTO webhook_deliveries (id, org_id, endpoint_id, event_id, type, data, tries_left)
            SELECT gen_random_uuid(), org_id, id, :event, :type, cast(:data AS jsonb), :tries
              FROM webhook_endpoints
             WHERE org_id = :org AND project_id = coalesce(:project, project_id)
               AND status = 'enabled' AND deleted_at IS NULL
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
    """Put the event of a job's current state into the outbox of the endpoints that want it.

    Jobs that are neither trainings nor evaluations have no event type: nothing is written for them.
    """
    # One statement in all cases: if no endpoint wants the event, it inserts nothing.
    statement = ANNOUNCE_JOBS.format(jobs="(SELECT * FROM jobs WHERE id = :job)")
    session.execute(text(statement), {"job": job_id, "event": new_id(), "tries": MAX_TRIES})


# Inserts the deliveries for the states of ``jobs``, which are rows of the table. Needs :event and :tries.
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
