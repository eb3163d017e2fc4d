"""``/v1/organization/limits``: what the caller's organisation may use. Not in the dialect."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from zhub.database.sessions import tenant_session
from zhub.tenancy import quotas
from zhub_api.context import CallerDep, ContextDep

router = APIRouter(prefix="/v1/organization")


@router.get("/limits")
def retrieve_limits(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """The limits of the organisation, and the bytes that it has stored."""
    caller.require("files:read")
    with tenant_session(context.engine, caller.org_id) as session:
        limits = quotas.limits_of(session, caller.org_id)
        stored_bytes = quotas.stored_bytes(session, caller.org_id)
    return {"object": "organization.limits", **asdict(limits), "stored_bytes": stored_bytes}
