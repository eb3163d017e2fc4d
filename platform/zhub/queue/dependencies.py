"""Dependencies: a waiting job is queued once all jobs that it depends on have succeeded, and cancelled if one has not.

A job also waits while the base model of its spec has no basis yet; ``zhub.training.bases`` ends that. Functions take
a Session and never commit.
"""

import uuid
from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.ids import parse_id, public_id
from zhub.models import Job, JobDependency
from zhub.queue import job_events, jobs
from zhub.queue.jobs import KindNames
from zhub.webhooks import outbox

MAX_NEEDED = 20
MAX_RELEASED = 500  # jobs in one pass of the leader


def needed(session: Session, project_id: uuid.UUID, names: Sequence[str], *, param: str) -> list[Job]:
    """The fine-tuning jobs of the project with these public ids, as dependencies of a new job.

    Raises:
        InvalidRequestError: a job is unknown, or has failed or been cancelled: a dependent of it would never run.
    """
    needed_jobs = []
    for name in dict.fromkeys(names):
        try:
            job = jobs.get_job(session, parse_id("fine-tuning job", name))
        except NotFoundError:
            job = None
        if job is None or job.project_id != project_id or job.kind != "train":
            raise InvalidRequestError(f"{param}: there is no fine-tuning job '{name}' in this project.", param=param)
        if job.state in (states.FAILED, states.CANCELLED):
            raise InvalidRequestError(
                f"{param}: '{name}' has {'failed' if job.state == states.FAILED else 'been cancelled'}; what waits for "
                "it would never run.",
                param=param,
            )
        needed_jobs.append(job)
    return needed_jobs


def add(session: Session, job: Job, needs: Sequence[uuid.UUID]) -> None:
    """Make a flushed job wait for these jobs."""
    session.add_all([JobDependency(org_id=job.org_id, job_id=job.id, needs_job_id=needed) for needed in needs])
    session.flush()


def of(session: Session, job_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Job]]:
    """The dependencies of each of these jobs, oldest first, also those that have ended."""
    needed_by: dict[uuid.UUID, list[Job]] = {}
    rows = session.execute(
        select(JobDependency.job_id, Job)
        .join(Job, Job.id == JobDependency.needs_job_id)
        .where(JobDependency.job_id.in_(job_ids))
        .order_by(Job.id)
    )
    for job_id, job in rows:
        needed_by.setdefault(job_id, []).append(job)
    return needed_by


def release_dependents(session: Session, kinds: KindNames) -> int:
    """Queue the jobs whose dependencies have all succeeded, and cancel those with one that has not; return how many.

    The leader calls this. Gates are not changed here: a gate itself decides what a failed dependency means.
    """
    # Plan at 10^6 jobs, 1,000 of them waiting: ix_jobs_waiting, then of each job its dependencies and what it needs, by
    # their keys; 3,000 rows, 11 ms. Not materialised, all of jobs would be read in the order of id.
    rows = session.execute(
        text(
            """
            WITH waiting AS MATERIALIZED (
                SELECT j.id, coalesce(j.spec->'basis' <> 'null', true) AS based
                  FROM jobs j WHERE j.state = 'waiting' AND j.kind <> ALL(:without_worker)
            ), due AS (
                SELECT waiting.id, lost, lost_id
                  FROM waiting CROSS JOIN LATERAL (
                       SELECT coalesce(bool_and(n.state = 'succeeded'), true) AS won,
                              bool_or(n.state IN ('failed', 'cancelled')) AS lost,
                              min(n.id::text) FILTER (WHERE n.state IN ('failed', 'cancelled')) AS lost_id
                         FROM job_dependencies d JOIN jobs n ON n.id = d.needs_job_id
                        WHERE d.job_id = waiting.id) needed
                 WHERE won AND based OR lost ORDER BY waiting.id LIMIT :limit
            )
            UPDATE jobs SET state = CASE WHEN lost THEN 'cancelled' ELSE 'queued' END,
                   finished_at = CASE WHEN lost THEN now() END,
                   ranked_at = now() - priority * cast(:head_start AS interval),
                   error = CASE WHEN lost THEN jsonb_build_object(
                       'code', 'dependency_failed', 'param', 'depends_on', 'message',
                       'The job ftjob-' || replace(lost_id, '-', '') || ', which it waited for, did not succeed.') END
              FROM due WHERE jobs.id = due.id AND jobs.state = 'waiting'
         RETURNING jobs.id, jobs.org_id, jobs.state, jobs.error
            """
        ),
        {
            "limit": MAX_RELEASED,
            "head_start": jobs.PRIORITY_HEAD_START,
            "without_worker": kinds.without_worker,
        },
    ).all()
    for row in rows:
        if row.state == states.QUEUED:
            job_events.add(session, row.org_id, row.id, "All that it waited for has succeeded. The job is queued.")
        else:
            job_events.add(session, row.org_id, row.id, row.error["message"], level="error")
            outbox.announce_job(session, row.id)
    return len(rows)


def waits_for_base(job: Job) -> bool:
    """Whether the base model of a job's spec has no basis yet: no worker can run it."""
    return "basis" in job.spec and job.spec["basis"] is None


def reason(job: Job, needs: Sequence[Job]) -> str:
    """A sentence that names what a waiting job still waits for: other jobs, its base model."""
    left = [public_id("fine-tuning job", needed.id) for needed in needs if needed.state != states.SUCCEEDED]
    waits_for = [f"{', '.join(left)} to succeed"] if left else []
    if waits_for_base(job):
        waits_for.append(f"the base model '{job.spec['base']['name']}' to be decomposed")
    return f"It waits for {', and for '.join(waits_for)}." if waits_for else "It is queued within seconds."
