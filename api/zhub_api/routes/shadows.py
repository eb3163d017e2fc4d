"""``/v1/releases/{release}/aliases/{alias}/shadow``: a version that answers beside an alias, and how it compares."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.ids import public_id
from zhub.models import ShadowTrial
from zhub.registry import aliases, releases, shadows
from zhub.tenancy import audit
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/releases/{release}/aliases/{alias}")

SHOWN = 20


class ShadowRequest(Schema):
    """The version that shall answer a ``share`` of the alias's requests beside it; nobody gets its answers."""

    model_config = ConfigDict(extra="forbid")
    version: str
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


@router.put("/shadow", dependencies=[needs("models:write")])
def start_shadow(
    caller: CallerDep, context: ContextDep, release: str, alias: str, request: ShadowRequest
) -> dict[str, Any]:
    """Let a version of the release answer beside the one that an alias points to, until the alias is moved."""
    with tenant_session(context.engine, caller.org_id) as session:
        owner = releases.get_release(session, caller, release)
        to = releases.get(session, caller.project_id, request.version)
        if to.release.id != owner.id:
            raise InvalidRequestError(f"'{request.version}' is no version of '{release}'.", param="version")
        by = public_id("API key", caller.key_id)
        trial = shadows.start(session, aliases.get(session, owner, alias), to, request.share, by=by)
        after = {"version": to.name, "share": request.share}
        audit.record(session, caller, "shadow.started", f"{release}@{alias}", after=after)
        return _objects(session, f"{release}@{alias}", [trial])[0]


@router.get("/shadow", dependencies=[needs("models:read")])
def retrieve_shadow(caller: CallerDep, context: ContextDep, release: str, alias: str) -> dict[str, Any]:
    """The newest trial of a shadow, and how its answers compare so far."""
    return _trials(caller, context, release, alias)[0]


@router.get("/shadows", dependencies=[needs("models:read")])
def list_shadows(caller: CallerDep, context: ContextDep, release: str, alias: str) -> dict[str, Any]:
    """The last trials of shadows of an alias, the newest first."""
    return page(_trials(caller, context, release, alias), has_more=False)


@router.delete("/shadow", dependencies=[needs("models:write")])
def end_shadow(caller: CallerDep, context: ContextDep, release: str, alias: str) -> dict[str, Any]:
    """End the trial that runs. What was counted stays."""
    with tenant_session(context.engine, caller.org_id) as session:
        owner = releases.get_release(session, caller, release)
        shadows.end(session, aliases.get(session, owner, alias).id)
        audit.record(session, caller, "shadow.ended", f"{release}@{alias}")
    return {"id": f"{release}@{alias}", "object": "release.shadow", "deleted": True}


def _trials(caller: CallerDep, context: ContextDep, release: str, alias: str) -> list[dict[str, Any]]:
    name = f"{release}@{alias}"
    with tenant_session(context.engine, caller.org_id) as session:
        owner = releases.get_release(session, caller, release)
        listed = shadows.trials(session, aliases.get(session, owner, alias, also_removed=True).id, limit=SHOWN)
        if not listed:
            hint = "No version has answered beside it yet: PUT /v1/releases/{release}/aliases/{alias}/shadow."
            raise NotFoundError("shadow", name, hint)
        return _objects(session, name, listed)


def _objects(session: Session, name: str, listed: Sequence[ShadowTrial]) -> list[dict[str, Any]]:
    ids = {version_id for trial in listed for version_id in (trial.live_version_id, trial.shadow_version_id)}
    records = releases.by_id(session, list(ids))
    return [
        {
            "id": public_id("shadow", trial.id),
            "object": "release.shadow",
            "alias": name,
            "live": records[trial.live_version_id].name,
            "shadow": records[trial.shadow_version_id].name,
            "share": trial.share,
            "by": trial.by,
            "created_at": int(trial.created_at.timestamp()),
            "ended_at": int(trial.ended_at.timestamp()) if trial.ended_at else None,
            "answered": trial.answered,
            "failed": trial.failed,
            "left_out": trial.left_out,
            "same_experts": trial.same_experts,
            "comparable": trial.comparable,
            "alike": trial.alike,
            "tokens": {"live": trial.live_tokens, "shadow": trial.shadow_tokens},
            "seconds": {"live": trial.live_seconds, "shadow": trial.shadow_seconds},
        }
        for trial in listed
    ]
