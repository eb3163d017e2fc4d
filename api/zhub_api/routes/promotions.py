"""``/v1/promotions`` and ``/v1/experts/{expert}/aliases``: which version of an expert is the one to use."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel as Schema
from pydantic import ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from zhub import states
from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError
from zhub.evaluation import gates, promotions
from zhub.ids import parse_id, public_id
from zhub.models import Alias, Expert, Job, Project, Promotion
from zhub.process.wakeup import SCHEDULER
from zhub.registry import aliases, versions
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page

router = APIRouter(prefix="/v1")


class AliasRequest(Schema):
    """The version that an alias shall point to. With ``expected``, only if it points to that now; null: only if new."""

    model_config = ConfigDict(extra="forbid")
    version: str
    expected: str | None = None
    reason: str | None = None


@router.get("/aliases")
def list_aliases(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """The aliases of the project's experts."""
    caller.require("models:read")
    with tenant_session(context.engine, caller.org_id) as session:
        objects = alias_objects(session, aliases.list_aliases(session, caller.project_id))
    return page(objects, has_more=False)


@router.get("/experts/{expert}/aliases/{alias}")
def retrieve_alias(caller: CallerDep, context: ContextDep, expert: str, alias: str) -> dict[str, Any]:
    """The version that ``<project>.<expert>@<alias>`` points to, null once removed, and every move, newest first."""
    caller.require("models:read")
    with tenant_session(context.engine, caller.org_id) as session:
        pointer = aliases.get(session, versions.get_expert(session, caller, expert), alias, also_removed=True)
        (answer,) = alias_objects(session, [pointer])
        return answer | {"moves": move_objects(session, pointer)}


@router.put("/experts/{expert}/aliases/{alias}")
def move_alias(
    caller: CallerDep, context: ContextDep, expert: str, alias: str, request: AliasRequest
) -> dict[str, Any]:
    """Let an alias point to a version, without a gate: the first one, an earlier one, or one that a gate refused."""
    caller.require("models:write")
    aliases.check_alias(alias, param="alias")
    with tenant_session(context.engine, caller.org_id) as session:
        owner = versions.get_expert(session, caller, expert)
        to = versions.get_version(session, caller.project_id, request.version)
        aliases.check_promotable(to)
        if to.expert.id != owner.id:
            raise InvalidRequestError(f"'{request.version}' is no version of '{expert}'.", param="version")
        expected = None
        if "expected" in request.model_fields_set:
            record = versions.get_version(session, caller.project_id, request.expected) if request.expected else None
            expected = aliases.Expected(record.version.id if record else None)
        by = public_id("API key", caller.key_id)
        moved = aliases.move(session, alias, to, by=by, reason=request.reason, expected=expected)
        return alias_objects(session, [moved])[0]


@router.delete("/experts/{expert}/aliases/{alias}")
def remove_alias(caller: CallerDep, context: ContextDep, expert: str, alias: str) -> dict[str, Any]:
    """Let an alias point to nothing: ``auto`` leaves the expert out where it is ``prod``. Its moves stay."""
    caller.require("models:write")
    with tenant_session(context.engine, caller.org_id) as session:
        pointer = aliases.get(session, versions.get_expert(session, caller, expert), alias)
        aliases.remove(session, pointer, by=public_id("API key", caller.key_id))
    return {"id": f"{expert}@{alias}", "object": "expert.alias", "deleted": True}


@router.post("/promotions")
def create_promotion(caller: CallerDep, context: ContextDep, request: promotions.PromotionRequest) -> dict[str, Any]:
    """Have a version measured on the gate's suites; if it passes, the alias points to it from then on."""
    caller.require("jobs:write")
    caller.require("models:write")
    graders = gates.read_graders(request)
    with tenant_session(context.engine, caller.org_id) as session:
        answer = promotion_objects(session, [promotions.create(session, caller, request, graders)])[0]
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/promotions")
def list_promotions(
    caller: CallerDep, context: ContextDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    caller.require("jobs:read")
    last = parse_id("promotion", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        newest, has_more = promotions.list_promotions(session, caller.project_id, after=last, limit=limit)
        return page(promotion_objects(session, newest), has_more=has_more)


@router.get("/promotions/{promotion_id}")
def retrieve_promotion(caller: CallerDep, context: ContextDep, promotion_id: str) -> dict[str, Any]:
    """One promotion: its status, and the reasons for its gate's decision."""
    caller.require("jobs:read")
    with tenant_session(context.engine, caller.org_id) as session:
        promotion = promotions.get(session, caller.project_id, parse_id("promotion", promotion_id))
        return promotion_objects(session, [promotion])[0]


@router.post("/promotions/{promotion_id}/cancel")
def cancel_promotion(caller: CallerDep, context: ContextDep, promotion_id: str) -> dict[str, Any]:
    """Cancel a promotion: the alias does not move. Evaluations that have begun go on."""
    caller.require("jobs:write")
    with tenant_session(context.engine, caller.org_id) as session:
        promotion = promotions.get(session, caller.project_id, parse_id("promotion", promotion_id))
        promotions.cancel(session, promotion)
        answer = promotion_objects(session, [promotion])[0]
    context.wakeup.notify(SCHEDULER)
    return answer


def alias_objects(session: Session, listed: Sequence[Alias]) -> list[dict[str, Any]]:
    """Aliases of the caller's project; the version is null of one that was removed."""
    records = versions.by_id(session, [alias.version_id for alias in listed if alias.version_id is not None])
    of_aliases = (
        select(Alias.id, Project.name, Expert.name)
        .join(Expert, Expert.id == Alias.expert_id)
        .join(Project, Project.id == Expert.project_id)
        .where(Alias.id.in_([alias.id for alias in listed]))
    )
    experts = {alias_id: f"{project}.{expert}" for alias_id, project, expert in session.execute(of_aliases)}
    return [
        {
            "id": f"{experts[alias.id]}@{alias.name}",
            "object": "expert.alias",
            "alias": alias.name,
            "version": records[alias.version_id].name if alias.version_id is not None else None,
            "moved_at": int(alias.moved_at.timestamp()),
        }
        for alias in listed
    ]


def move_objects(session: Session, alias: Alias) -> list[dict[str, Any]]:
    moves = aliases.moves(session, alias)
    ids = {version_id for move in moves for version_id in (move.from_version_id, move.to_version_id) if version_id}
    names = {version_id: record.name for version_id, record in versions.by_id(session, list(ids)).items()}
    return [
        {
            "id": public_id("alias move", move.id),
            "object": "expert.alias.move",
            "created_at": int(move.created_at.timestamp()),
            "from": names[move.from_version_id] if move.from_version_id else None,
            "to": names[move.to_version_id] if move.to_version_id else None,
            "by": move.by,
            "reason": move.reason,
        }
        for move in moves
    ]


def promotion_objects(session: Session, listed: Sequence[Promotion]) -> list[dict[str, Any]]:
    ids = [promotion.version_id for promotion in listed if promotion.version_id is not None]
    records = versions.by_id(session, ids)
    jobs = {
        job.id: job
        for job in session.scalars(select(Job).where(Job.id.in_([promotion.job_id for promotion in listed])))
    }
    return [
        {
            "id": public_id("promotion", promotion.id),
            "object": "promotion",
            "created_at": int(promotion.created_at.timestamp()),
            "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
            "status": states.CANCELLED if job.desired == "cancel" else job.state,
            "error": job.error,
            "model": records[promotion.version_id].name if promotion.version_id is not None else None,
            "training_job": public_id("fine-tuning job", promotion.training_job_id)
            if promotion.training_job_id
            else None,
            "alias": promotion.alias,
            "gate": promotion.gate,
            "promoted": promotion.promoted,
            "findings": promotion.findings,
        }
        for promotion in listed
        for job in [jobs[promotion.job_id]]
    ]
