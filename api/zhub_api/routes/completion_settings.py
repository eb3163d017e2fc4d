"""``/v1/stored_completions``: whether the project stores completions, and all of them deleted. Not in the dialect."""

import logging
from typing import Any

from fastapi import APIRouter

from zhub.completions import settings
from zhub.completions.settings import SettingsChange, Told
from zhub.database.sessions import tenant_session
from zhub.ids import public_id
from zhub.tenancy import audit
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/stored_completions")

log = logging.getLogger("zhub.api")


@router.get("/settings", dependencies=[needs("files:read")])
def retrieve_settings(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """Whether the project stores completions (``store: true``), for how many days, and what is redacted of them."""
    with tenant_session(context.engine, caller.org_id) as session:
        return settings_object(settings.read(session, caller.project_id))


@router.post("/settings", dependencies=[needs("project:write")])
def change_settings(caller: CallerDep, context: ContextDep, request: SettingsChange) -> dict[str, Any]:
    """Change what is given of the settings; needs the scope ``project:write``.

    ``kept_days`` holds for what is stored already, ``redact`` for what is stored from now on.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        changed = settings.change(session, caller, request)
        after = request.model_dump(mode="json", exclude_unset=True)
        audit.record(session, caller, "project.updated", public_id("project", caller.project_id), after=after)
    extra = {"action": "storing_changed", "org_id": caller.org_id, "key": public_id("API key", caller.key_id)}
    log.info("project %s stores completions: %s", caller.project, changed, extra=extra)
    return settings_object(changed)


@router.delete("", dependencies=[needs("project:write")])
def delete_all(caller: CallerDep, context: ContextDep) -> dict[str, Any]:
    """Delete all stored completions of the project, with the feedback on them; needs the scope ``project:write``."""
    with tenant_session(context.engine, caller.org_id) as session:
        settings.clear(session, caller)
        audit.record(session, caller, "completion.deleted", public_id("project", caller.project_id))
    extra = {"action": "completions_cleared", "org_id": caller.org_id, "key": public_id("API key", caller.key_id)}
    log.info("project %s deletes all its stored completions", caller.project, extra=extra)
    return {"object": "stored_completions", "deleted": True}


def settings_object(said: Told) -> dict[str, Any]:
    return {
        "object": "stored_completions.settings",
        "enabled": said.enabled,
        "kept_days": said.kept_days,
        "redact": list(said.redact),
        "stored_bytes": said.stored_bytes,
    }
