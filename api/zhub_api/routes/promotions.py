"""``/v1/promotions``: versions of experts and releases that get an alias if they pass a gate."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub import states
from zhub.database.sessions import tenant_session
from zhub.evaluation import gates, promotion_lists, promotions
from zhub.ids import parse_id, public_id
from zhub.models import Job, Promotion
from zhub.process.wakeup import SCHEDULER
from zhub.registry import alias_requests
from zhub.tenancy import audit
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1")


@router.post("/promotions", dependencies=[needs("jobs:write", "models:write")])
def create_promotion(caller: CallerDep, context: ContextDep, request: promotions.PromotionRequest) -> dict[str, Any]:
    """Have a version measured on the gate's suites; if it passes, the alias points to it from then on."""
    graders = gates.read_graders(request)
    with tenant_session(context.engine, caller.org_id) as session:
        answer = promotion_objects(session, [promotions.create(session, caller, request, graders)])[0]
        after = {"version": answer["model"], "alias": answer["alias"]}
        audit.record(session, caller, "promotion.requested", answer["id"], after=after)
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/promotions", dependencies=[needs("jobs:read")])
def list_promotions(
    caller: CallerDep, context: ContextDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    last = parse_id("promotion", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        newest, has_more = promotion_lists.list_promotions(session, caller.project_id, after=last, limit=limit)
        return page(promotion_objects(session, newest), has_more=has_more)


@router.get("/promotions/{promotion_id}", dependencies=[needs("jobs:read")])
def retrieve_promotion(caller: CallerDep, context: ContextDep, promotion_id: str) -> dict[str, Any]:
    """One promotion: its status, and the reasons for its gate's decision."""
    with tenant_session(context.engine, caller.org_id) as session:
        promotion = promotion_lists.get(session, caller.project_id, parse_id("promotion", promotion_id))
        return promotion_objects(session, [promotion])[0]


@router.post("/promotions/{promotion_id}/cancel", dependencies=[needs("jobs:write")])
def cancel_promotion(caller: CallerDep, context: ContextDep, promotion_id: str) -> dict[str, Any]:
    """Cancel a promotion: the alias does not move. Evaluations that have begun go on."""
    with tenant_session(context.engine, caller.org_id) as session:
        promotion = promotion_lists.get(session, caller.project_id, parse_id("promotion", promotion_id))
        promotions.cancel(session, promotion)
        answer = promotion_objects(session, [promotion])[0]
        audit.record(session, caller, "promotion.cancelled", promotion_id)
    context.wakeup.notify(SCHEDULER)
    return answer


def promotion_objects(session: Session, listed: Sequence[Promotion]) -> list[dict[str, Any]]:
    jobs = {
        job.id: job
        for job in session.scalars(select(Job).where(Job.id.in_([promotion.job_id for promotion in listed])))
    }
    # After their jobs, so that one which has succeeded has its decision: it may have ended since these were read.
    again = select(Promotion).where(Promotion.id.in_([promotion.id for promotion in listed]))
    session.scalars(again.execution_options(populate_existing=True)).all()
    names = promotion_lists.model_names(session, listed)
    asked = alias_requests.of_promotions(session, [promotion.id for promotion in listed])
    return [
        {
            "id": public_id("promotion", promotion.id),
            "object": "promotion",
            "created_at": int(promotion.created_at.timestamp()),
            "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
            "status": states.CANCELLED if job.desired == "cancel" else job.state,
            "error": job.error,
            "model": names.get(promotion.id),
            "training_job": public_id("fine-tuning job", promotion.training_job_id)
            if promotion.training_job_id
            else None,
            "alias": promotion.alias,
            "gate": promotion.gate,
            "promoted": promotion.promoted,
            "approval": public_id("alias request", asked[promotion.id].id) if promotion.id in asked else None,
            "findings": promotion.findings,
        }
        for promotion in listed
        for job in [jobs[promotion.job_id]]
    ]
