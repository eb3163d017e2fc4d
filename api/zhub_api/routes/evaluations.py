"""``/v1/evaluations``: how good a base or an expert is on a file of one's own, and whether a difference is real."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub.admission import limits
from zhub.database.sessions import tenant_session
from zhub.errors import NotReadyError
from zhub.evaluation import evaluations
from zhub.ids import parse_id, public_id
from zhub.kinds import table
from zhub.models import Evaluation, Job
from zhub.process.wakeup import SCHEDULER
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.routes.fine_tuning import queue_object, status_of

router = APIRouter(prefix="/v1/evaluations")


@router.post("")
def create_evaluation(caller: CallerDep, context: ContextDep, request: evaluations.EvaluationRequest) -> dict[str, Any]:
    """Measure a model, its base and ``compare_with`` on one suite. What was measured before is not run again."""
    caller.require("jobs:write")
    with tenant_session(context.engine, caller.org_id) as session:
        limits.check_queue(session, caller.org_id, table.names())
        made = evaluations.create(session, caller, request)
        answer = compared_object(session, made[0])
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("")
def list_evaluations(
    caller: CallerDep, context: ContextDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    caller.require("jobs:read")
    last = parse_id("evaluation", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        found, has_more = evaluations.list_evaluations(session, caller.project_id, after=last, limit=limit)
        return page(evaluation_objects(session, found), has_more=has_more)


@router.get("/{evaluation_id}")
def retrieve_evaluation(caller: CallerDep, context: ContextDep, evaluation_id: str) -> dict[str, Any]:
    """One evaluation, beside every other one of the same suite and, where both have finished, compared with it."""
    caller.require("jobs:read")
    with tenant_session(context.engine, caller.org_id) as session:
        found = evaluations.get(session, caller.project_id, parse_id("evaluation", evaluation_id))
        return compared_object(session, found)


@router.get("/{evaluation_id}/queue")
def explain_wait(caller: CallerDep, context: ContextDep, evaluation_id: str) -> dict[str, Any]:
    """What the evaluation waits for, as of a fine-tuning job."""
    caller.require("jobs:read")
    with tenant_session(context.engine, caller.org_id) as session:
        found = evaluations.get(session, caller.project_id, parse_id("evaluation", evaluation_id))
        job = session.get_one(Job, found.job_id)
        return queue_object(session, job, "evaluation", public_id("evaluation", found.id))


@router.get("/{evaluation_id}/rows")
def evaluation_rows(caller: CallerDep, context: ContextDep, evaluation_id: str) -> StreamingResponse:
    """Each row with the greedy answer to it, one JSON object a line: line, prompt, answer, reward, parsed."""
    caller.require("jobs:read")
    with tenant_session(context.engine, caller.org_id) as session:
        found = evaluations.get(session, caller.project_id, parse_id("evaluation", evaluation_id))
    if found.rows_key is None:
        raise NotReadyError("The evaluation has not finished; its rows come with its results.")
    return StreamingResponse(context.store.open(found.rows_key), media_type="application/jsonl")


def evaluation_objects(session: Session, found: Sequence[Evaluation]) -> list[dict[str, Any]]:
    names, records = evaluations.names(session, found), evaluations.records_of(session, found)
    jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_([one.job_id for one in found])))}
    return [
        {
            "id": public_id("evaluation", one.id),
            "object": "evaluation",
            "created_at": int(one.created_at.timestamp()),
            "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
            "status": status_of(job),
            "error": job.error,
            "cluster": job.cluster,
            "model": names[one.id],
            "file": public_id("file", job.dataset_version_id) if job.dataset_version_id else None,
            "suite": one.suite,
            "suite_digest": one.suite_digest,
            "results": one.results,
            "warnings": evaluations.warnings(one, records.get(one.id)),
        }
        for one in found
        for job in [jobs[one.job_id]]
    ]


def compared_object(session: Session, evaluation: Evaluation) -> dict[str, Any]:
    others = evaluations.others(session, evaluation)
    (answer, *beside) = evaluation_objects(session, [evaluation, *others])
    return answer | {
        "others": [
            {
                "id": shown["id"],
                "model": shown["model"],
                "status": shown["status"],
                "results": other.results,
                "comparison": _comparison(evaluation, other, answer["model"], shown["model"]),
            }
            for other, shown in zip(others, beside, strict=True)
        ]
    }


def _comparison(evaluation: Evaluation, other: Evaluation, name: str, other_name: str) -> dict[str, Any] | None:
    if evaluation.rewards is None or other.rewards is None:
        return None
    found = evaluations.compare(tuple(evaluation.rewards), tuple(other.rewards))
    return asdict(found) | {"verdict": found.verdict, "sentence": found.sentence(name, other_name)}
