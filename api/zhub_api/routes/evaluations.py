"""``/v1/evaluations``: how good a model is on a file, and whether a difference is significant."""

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
from zhub.evaluation import evaluation_lists, evaluations, subjects
from zhub.evaluation.comparison import compare
from zhub.evaluation.evaluation_lists import EvaluationFilter
from zhub.graders import parse_grader
from zhub.ids import parse_id, public_id
from zhub.kinds import table
from zhub.models import Evaluation, Job
from zhub.process.wakeup import SCHEDULER
from zhub.queue.statuses import status_of
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import Order, PageLimit, Search, Since, Status, moment, page, wanted_page
from zhub_api.rights import needs
from zhub_api.routes.fine_tuning import queue_object
from zhub_api.streams import JSON_LINES, answering

router = APIRouter(prefix="/v1/evaluations")


@router.post("", dependencies=[needs("jobs:write")])
def create_evaluation(caller: CallerDep, context: ContextDep, request: evaluations.EvaluationRequest) -> dict[str, Any]:
    """Measure a model, its base and ``compare_with`` on one suite. What was measured before is not run again."""
    grader = parse_grader(request.grader, param="grader")
    with tenant_session(context.engine, caller.org_id) as session:
        limits.check_queue(session, caller.org_id, table.names())
        shown = shown_with_others(session, evaluations.create(session, caller, request, grader)[0])
    context.wakeup.notify(SCHEDULER)
    return compared_object(shown)


@router.get("", dependencies=[needs("jobs:read")])
def list_evaluations(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: PageLimit = 20,
    order: Order = "desc",
    status: Annotated[list[Status] | None, Query(description="One of these: may be repeated.")] = None,
    model: Annotated[
        str | None, Query(description="A version, an expert or a release with all its versions, or a base.")
    ] = None,
    since: Since = None,
    search: Search = None,
) -> dict[str, Any]:
    """The project's evaluations, newest first. ``search`` looks in the names of the file, the grader and the base."""
    wanted = EvaluationFilter(status=status or (), model=model, since=moment(since), search=search)
    with tenant_session(context.engine, caller.org_id) as session:
        listed, has_more = evaluation_lists.list_evaluations(
            session, caller, wanted, wanted_page("evaluation", after, limit, order)
        )
        return page(evaluation_objects(session, listed), has_more=has_more)


@router.get("/{evaluation_id}", dependencies=[needs("jobs:read")])
def retrieve_evaluation(caller: CallerDep, context: ContextDep, evaluation_id: str) -> dict[str, Any]:
    """One evaluation with all others of the same suite, and its comparison with each that has finished as well."""
    with tenant_session(context.engine, caller.org_id) as session:
        evaluation = evaluations.get(session, caller.project_id, parse_id("evaluation", evaluation_id))
        shown = shown_with_others(session, evaluation)
    return compared_object(shown)


@router.get("/{evaluation_id}/queue", dependencies=[needs("jobs:read")])
def explain_wait(caller: CallerDep, context: ContextDep, evaluation_id: str) -> dict[str, Any]:
    """What the evaluation waits for, in the form of a fine-tuning job's queue."""
    with tenant_session(context.engine, caller.org_id) as session:
        evaluation = evaluations.get(session, caller.project_id, parse_id("evaluation", evaluation_id))
        job = session.get_one(Job, evaluation.job_id)
        return queue_object(session, job, "evaluation", public_id("evaluation", evaluation.id))


@router.get(
    "/{evaluation_id}/rows",
    response_class=StreamingResponse,
    responses=answering(JSON_LINES),
    dependencies=[needs("jobs:read")],
)
def evaluation_rows(caller: CallerDep, context: ContextDep, evaluation_id: str) -> StreamingResponse:
    """Each row with the greedy answer to it, one JSON object a line: line, prompt, answer, reward, parsed."""
    with tenant_session(context.engine, caller.org_id) as session:
        evaluation = evaluations.get(session, caller.project_id, parse_id("evaluation", evaluation_id))
    if evaluation.rows_key is None:
        raise NotReadyError("The evaluation has not finished; its rows come with its results.")
    return StreamingResponse(context.store.open(evaluation.rows_key), media_type=JSON_LINES)


def evaluation_objects(session: Session, listed: Sequence[Evaluation]) -> list[dict[str, Any]]:
    behind = subjects.records(session, listed)
    names, warnings = subjects.names(session, listed, behind), subjects.warnings(session, listed, behind)
    job_ids = [evaluation.job_id for evaluation in listed]
    jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(job_ids)))}
    # After their jobs, so that one which has succeeded has its results: it may have ended since these were read.
    again = select(Evaluation).where(Evaluation.id.in_([evaluation.id for evaluation in listed]))
    session.scalars(again.execution_options(populate_existing=True)).all()
    return [
        {
            "id": public_id("evaluation", evaluation.id),
            "object": "evaluation",
            "created_at": int(evaluation.created_at.timestamp()),
            "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
            "status": status_of(job),
            "error": job.error,
            "cluster": job.cluster,
            "model": names[evaluation.id],
            "file": public_id("file", job.dataset_version_id) if job.dataset_version_id else None,
            "suite": evaluation.suite,
            "suite_digest": evaluation.suite_digest,
            "results": evaluation.results,
            "warnings": warnings[evaluation.id],
        }
        for evaluation in listed
        for job in [jobs[evaluation.job_id]]
    ]


Shown = list[tuple[Evaluation, dict[str, Any]]]


def shown_with_others(session: Session, evaluation: Evaluation) -> Shown:
    """An evaluation and the others of its suite, each with its object."""
    listed = [evaluation, *evaluations.others(session, evaluation)]
    return list(zip(listed, evaluation_objects(session, listed), strict=True))


def compared_object(shown: Shown) -> dict[str, Any]:
    """The first one's object, with its comparison to each of the others. Slow: call it after the session is closed."""
    (own, answer), *others = shown
    return answer | {
        "others": [
            {
                "id": beside["id"],
                "model": beside["model"],
                "status": beside["status"],
                "results": beside["results"],
                "comparison": _comparison(own, other, answer["model"], beside["model"]),
            }
            for other, beside in others
        ]
    }


def _comparison(evaluation: Evaluation, other: Evaluation, name: str, other_name: str) -> dict[str, Any] | None:
    if evaluation.rewards is None or other.rewards is None:
        return None
    comparison = compare(tuple(evaluation.rewards), tuple(other.rewards))
    return asdict(comparison) | {"verdict": comparison.verdict, "sentence": comparison.sentence(name, other_name)}
