"""``/v1/lineage``: where a version comes from, and what came of it."""

from typing import Any

from fastapi import APIRouter

from zhub.database.sessions import tenant_session
from zhub.registry import lineage
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1")


@router.get("/lineage/{subject}", dependencies=[needs("models:read")])
def show_lineage(caller: CallerDep, context: ContextDep, subject: str) -> dict[str, Any]:
    """The files, jobs, attempts and parents that a version comes from, and its children, evaluations, aliases, releases
    and schedules; or of a file, by its id, what came of it. Deleted versions are part of it.

    ``edges`` lead from what was there first to what came of it. ``truncated``: there is more than is told.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        walked = lineage.of(session, caller, subject)
    return {
        "id": walked.of,
        "object": "lineage",
        "nodes": [
            {"id": node.id, "kind": node.kind, "name": node.name, "state": node.state, "digest": node.digest}
            for node in walked.nodes.values()
        ],
        "edges": [{"from": edge.origin, "to": edge.to, "relation": edge.relation} for edge in walked.edges],
        "truncated": walked.truncated,
    }
