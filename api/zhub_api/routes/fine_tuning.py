"""``/v1/fine_tuning/jobs``: training, in the OpenAI dialect."""

import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub import states
from zhub.admission import limits
from zhub.database.sessions import tenant_session
from zhub.errors import NotFoundError
from zhub.evaluation import promotion_lists
from zhub.ids import parse_id, public_id
from zhub.kinds import redrive, table
from zhub.models import Checkpoint, Job, QueuePlace
from zhub.process.wakeup import SCHEDULER
from zhub.queue import checkpoints, dependencies, jobs
from zhub.queue.desired import request_cancel, request_pause, request_resume
from zhub.queue.statuses import status_of
from zhub.recipes import Recipe
from zhub.registry import versions
from zhub.tenancy import costs, prices
from zhub.tenancy.costs import JobCost
from zhub.tenancy.keys import Caller
from zhub.training import fine_tuning, job_changes, job_lists
from zhub.training.job_lists import JobFilter
from zhub.training.packing import shares_a_worker
from zhub_api.context import CallerDep, ContextDep
from zhub_api.money import shown_money
from zhub_api.pages import Order, PageLimit, Search, Since, Status, moment, page, wanted_metadata, wanted_page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/fine_tuning/jobs")

NOTHING = JobCost(0.0, None)


@router.post("", dependencies=[needs("jobs:write")])
def create_job(
    caller: CallerDep,
    context: ContextDep,
    request: fine_tuning.JobRequest,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    x_stainless_retry_count: Annotated[int, Header()] = 0,
) -> dict[str, Any]:
    """Check a request and enqueue its job. Repeating it with the same Idempotency-Key returns the same job."""
    if request.promotion is not None:
        caller.require("models:write")
    graders = fine_tuning.read_graders(request)
    is_retry = x_stainless_retry_count > 0
    with tenant_session(context.engine, caller.org_id) as session:
        job = fine_tuning.create(session, caller, request, graders, idempotency_key=idempotency_key, is_retry=is_retry)
        (answer,) = job_objects(session, [job])
    context.wakeup.notify(SCHEDULER)
    return answer


@router.post("/estimate", dependencies=[needs("jobs:write")])
def estimate_job(caller: CallerDep, context: ContextDep, request: fine_tuning.JobRequest) -> dict[str, Any]:
    """Check a request as ``POST /v1/fine_tuning/jobs`` does, and say what its job would be and cost. Nothing is stored.

    Not in the dialect. What is expected rests on earlier trainings of the organisation on this base by this method,
    ``based_on``; all of it is null where none has ended yet, and the cost where a worker's hour has no price.
    """
    graders = fine_tuning.read_graders(request)
    with tenant_session(context.engine, caller.org_id) as session:
        resolved = fine_tuning.check_training(session, caller, request, graders)
        hour = prices.price_of(session, "worker_hours", request.cluster)
    past = resolved.estimate
    worker_seconds = None if past.seconds is None else past.seconds * resolved.workers
    cost = None
    if hour is not None and worker_seconds is not None:
        cost = shown_money(Decimal(worker_seconds) / 3600 * hour.amount, hour.currency)
    return {
        "object": "fine_tuning.job.estimate",
        "expert": f"{caller.project}.{resolved.spec.expert}",
        "method": resolved.method,
        "seed": resolved.spec.seed,
        "workers": resolved.workers,
        "shares_a_worker": shares_a_worker(resolved.spec.hyperparameters),
        "expected_seconds": past.seconds,
        "shortest_seconds": past.shortest_s,
        "longest_seconds": past.longest_s,
        "expected_worker_seconds": worker_seconds,
        "expected_cost": cost,
        "expected_tokens": past.tokens,
        "based_on": {"trainings": past.trainings, "same_size": past.same_size},
    }


@router.get("", dependencies=[needs("jobs:read")])
def list_jobs(
    caller: CallerDep,
    context: ContextDep,
    http_request: Request,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "desc",
    metadata: Annotated[
        Literal["null"] | None, Query(description="`metadata[key]=value`, which may be repeated; `null`: without any.")
    ] = None,
    status: Annotated[list[Status] | None, Query(description="One of these: may be repeated.")] = None,
    method: Annotated[Recipe | None, Query()] = None,
    expert: Annotated[str | None, Query(description="`<project>.<expert>`, or the expert's name alone.")] = None,
    since: Since = None,
    search: Search = None,
    archived: Annotated[bool, Query(description="Only those that are archived, which are left out otherwise.")] = False,
) -> dict[str, Any]:
    """The project's jobs, newest first. All that follows ``metadata`` is not in the dialect.

    ``search`` looks for a text in the expert's name, the base, the file's name, the description, the metadata and the
    error, in the next 10,000 jobs that everything else leaves.
    """
    wanted = JobFilter(
        status=status or (),
        method=method,
        expert=expert,
        since=moment(since),
        metadata={} if metadata == "null" else wanted_metadata(http_request.query_params) or None,
        archived=archived,
        search=search,
    )
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = job_lists.list_jobs(
            session, caller, wanted, wanted_page("fine-tuning job", after, limit, order)
        )
        return page(job_objects(session, listed), has_more=has_more)


@router.get("/{job_id}", dependencies=[needs("jobs:read")])
def retrieve_job(caller: CallerDep, context: ContextDep, job_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return job_objects(session, [own_job(session, caller, job_id)])[0]


@router.patch("/{job_id}", dependencies=[needs("jobs:write")])
def change_job(caller: CallerDep, context: ContextDep, job_id: str, request: job_changes.JobChange) -> dict[str, Any]:
    """Describe a job, replace its metadata, archive it or show it again. Not in the dialect."""
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        job_changes.change_job(session, job, request, by=public_id("API key", caller.key_id))
        return job_objects(session, [job])[0]


@router.post("/{job_id}/cancel", dependencies=[needs("jobs:write")])
def cancel_job(caller: CallerDep, context: ContextDep, job_id: str) -> dict[str, Any]:
    """Request that the job stops; it is ``cancelled`` once its worker has released it."""
    return _request_change(caller, context, job_id, request_cancel)


@router.post("/{job_id}/pause", dependencies=[needs("jobs:write")])
def pause_job(caller: CallerDep, context: ContextDep, job_id: str) -> dict[str, Any]:
    """Request that the job writes a checkpoint and releases its worker; it is ``paused`` then."""
    return _request_change(caller, context, job_id, request_pause)


@router.post("/{job_id}/resume", dependencies=[needs("jobs:write")])
def resume_job(caller: CallerDep, context: ContextDep, job_id: str) -> dict[str, Any]:
    """Queue a paused job again; it continues from its newest checkpoint."""
    return _request_change(caller, context, job_id, request_resume)


@router.post("/{job_id}/redrive", dependencies=[needs("jobs:write")])
def redrive_job(caller: CallerDep, context: ContextDep, job_id: str) -> dict[str, Any]:
    """Queue a job again that failed or was cancelled, from its newest checkpoint if it left one. Not in the dialect."""
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        limits.check_queue(session, caller.org_id, table.names())
        redrive.request(session, job, by=public_id("API key", caller.key_id))
        (answer,) = job_objects(session, [job])
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/{job_id}/queue", dependencies=[needs("jobs:read")])
def explain_wait(caller: CallerDep, context: ContextDep, job_id: str) -> dict[str, Any]:
    """What the job waits for: its position in its cluster's queue, why, and when it may start. Not in the dialect."""
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        return queue_object(session, job, "fine_tuning.job", public_id("fine-tuning job", job.id))


@router.get("/{job_id}/checkpoints", dependencies=[needs("jobs:read")])
def list_checkpoints(
    caller: CallerDep,
    context: ContextDep,
    job_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> dict[str, Any]:
    """The job's checkpoints, newest first; each of them can be used as a model."""
    last = parse_id("checkpoint", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        newest, has_more = checkpoints.list_checkpoints(session, job.id, after=last, limit=limit)
        return page(checkpoint_objects(session, job, newest), has_more=has_more)


@router.delete("/{job_id}/checkpoints/{checkpoint_id}", dependencies=[needs("jobs:write")])
def delete_checkpoint(caller: CallerDep, context: ContextDep, job_id: str, checkpoint_id: str) -> dict[str, Any]:
    """Delete a checkpoint. The newest one of a job that has not ended is refused: the job continues from it."""
    with tenant_session(context.engine, caller.org_id) as session:
        job = own_job(session, caller, job_id)
        checkpoint = checkpoints.delete_checkpoint(session, job, parse_id("checkpoint", checkpoint_id))
    return {"id": public_id("checkpoint", checkpoint.id), "object": "fine_tuning.job.checkpoint", "deleted": True}


def _request_change(
    caller: CallerDep, context: ContextDep, job_id: str, request: Callable[[Session, uuid.UUID], Job]
) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        (answer,) = job_objects(session, [request(session, own_job(session, caller, job_id).id)])
    context.wakeup.notify(SCHEDULER)
    return answer


def own_job(session: Session, caller: Caller, job_id: str) -> Job:
    job = jobs.get_job(session, parse_id("fine-tuning job", job_id))
    if job.project_id != caller.project_id or job.kind != "train":
        raise NotFoundError("fine-tuning job", job_id)
    return job


def job_objects(session: Session, listed: Sequence[Job]) -> list[dict[str, Any]]:
    models = versions.job_model_names(session, listed)
    ids = [job.id for job in listed]
    needs = dependencies.of(session, ids)
    gates = promotion_lists.of_trainings(session, ids)
    results = job_lists.results_of(session, listed)
    job_costs = costs.of_jobs(session, ids)
    currency = prices.currency(session)
    return [
        {
            "id": public_id("fine-tuning job", job.id),
            "object": "fine_tuning.job",
            "created_at": int(job.created_at.timestamp()),
            "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
            "model": job.request["model"],
            "fine_tuned_model": models.get(job.id),
            "result": results.get(job.id),
            "organization_id": public_id("organization", job.org_id),
            "status": status_of(job),
            "error": job.error,
            "training_file": public_id("file", job.dataset_version_id) if job.dataset_version_id else None,
            "validation_file": public_id("file", job.validation_version_id) if job.validation_version_id else None,
            "method": job.request["method"],
            "hyperparameters": job.request["method"][job.request["method"]["type"]]["hyperparameters"],
            "seed": job.request["seed"],
            "suffix": job.request["suffix"],
            "metadata": job.request["metadata"],
            "description": job.description,
            "archived_at": int(job.archived_at.timestamp()) if job.archived_at else None,
            "trained_tokens": job.trained_tokens,
            "result_files": [],
            "integrations": [],
            "estimated_finish": None,
            "attempts": job.fence,
            "worker_seconds": spent.worker_seconds,
            "cost": shown_money(spent.amount, currency),
            "cluster": job.cluster,
            "priority": job.priority,
            "depends_on": [public_id("fine-tuning job", needed.id) for needed in needs.get(job.id, [])],
            "promotion": public_id("promotion", gates[job.id]) if job.id in gates else None,
            "dedup_key": job.dedup_key,
        }
        for job in listed
        for spent in [job_costs.get(job.id, NOTHING)]
    ]


def checkpoint_objects(session: Session, job: Job, listed: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    names = versions.checkpoint_names(session, job, listed)
    return [
        {
            "id": public_id("checkpoint", checkpoint.id),
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(checkpoint.created_at.timestamp()),
            "fine_tuned_model_checkpoint": name,
            "fine_tuning_job_id": public_id("fine-tuning job", job.id),
            "metrics": checkpoint.metrics | {"step": checkpoint.step},
            "step_number": checkpoint.step,
            "digest": checkpoint.digest,
            "size_bytes": checkpoint.size_bytes,
        }
        for checkpoint, name in zip(listed, names, strict=True)
    ]


def queue_object(session: Session, job: Job, kind: str, shown_id: str) -> dict[str, Any]:
    """What a job waits for, shown as the queue of an object of this kind with this id."""
    explanation = None
    if job.state == states.WAITING:
        reason = dependencies.reason(job, dependencies.of(session, [job.id]).get(job.id, []))
    elif job.state == states.QUEUED:
        explanation = session.scalar(select(QueuePlace).where(QueuePlace.job_id == job.id))
        reason = (
            explanation.reason if explanation else "It has just been queued; the scheduler looks at it within seconds."
        )
    else:
        reason = {
            states.ADMITTED: "It is admitted, and the next worker takes it.",
            states.PAUSED: "It is paused, until somebody resumes it.",
        }.get(job.state, "It does not wait: it has begun." if job.state in states.ACTIVE else "It has ended.")
    return {
        "object": f"{kind}.queue",
        "job_id": shown_id,
        "status": status_of(job),
        "position": explanation.position if explanation else None,
        "reason": reason,
        "estimated_start": int(explanation.starts_at.timestamp()) if explanation and explanation.starts_at else None,
        "expected_seconds": job.expected_s,
    }
