"""``/v1/experts/{name}/state``: deprecate a version, yank it, or take that back; and what needs it."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.ids import public_id
from zhub.models import ExpertVersion
from zhub.registry import life, needs, versions
from zhub.registry.life import StateRequest
from zhub.registry.needs import Action, Need
from zhub.tenancy import audit
from zhub.tenancy.keys import Caller
from zhub_api import rights
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.routes.experts import version_objects

router = APIRouter(prefix="/v1/experts")


@router.put("/{name}/state", dependencies=[rights.needs("models:write")])
def change_state(caller: CallerDep, context: ContextDep, name: str, request: StateRequest) -> dict[str, Any]:
    """Deprecate a version: its answers then name the ``successor``. Or yank it: it answers nothing more, and says why.

    A version is not yanked while something needs it, unless ``detach`` is true. ``ready`` takes either back.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        record = versions.get_version(session, caller.project_id, name)
        before = {"state": record.version.state}
        life.change(session, caller, record, request)
        after = {"state": request.state, "reason": request.reason, "successor": request.successor}
        audit.record(session, caller, "expert.state_changed", record.name, before=before, after=after)
        return version_objects(session, [record])[0]


@router.get("/{name}/needs", dependencies=[rights.needs("models:read")])
def list_needs(caller: CallerDep, context: ContextDep, name: str, action: Action = "delete") -> dict[str, Any]:
    """What needs a version, or an expert with its versions, and is in the way of deleting or yanking it."""
    with tenant_session(context.engine, caller.org_id) as session:
        listed = _needs(session, caller, name, action)
    objects = [
        {"id": need.name, "object": "need", "kind": need.kind, "needed": need.needed, "sentence": need.sentence}
        for need in listed
    ]
    return page(objects, has_more=False)


def _needs(session: Session, caller: Caller, name: str, action: Action) -> list[Need]:
    by = public_id("API key", caller.key_id)
    if "@" not in name:
        expert = versions.get_expert(session, caller, name)
        which = (ExpertVersion.expert_id == expert.id, ExpertVersion.deleted_at.is_(None))
        return [*needs.of_expert(session, expert), *needs.of_versions(session, expert, which, action, by=by)]
    record = versions.get_version(session, caller.project_id, name)
    only = (ExpertVersion.id == record.version.id,)
    return list(needs.of_versions(session, record.expert, only, action, by=by))
