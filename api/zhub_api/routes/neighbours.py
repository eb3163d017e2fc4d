"""``/v1/experts/{name}/neighbours``: what is near a version, among what the key may see."""

from typing import Any

from fastapi import APIRouter

from zhub.database.sessions import tenant_session
from zhub.errors import ConflictError
from zhub.registry import neighbours, sharing, strengths, versions
from zhub.registry.catalogue import Listed
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/experts")


@router.get("/{name}/neighbours", dependencies=[needs("models:read")])
def list_neighbours(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    """The versions that change the same basis most alike, of up to 24 other experts, and those that were trained on the
    same file: of all that the key may see, its own and others'.

    ``cosine`` is that of the angle between the changes. Only versions of the kind ``svf`` are compared.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        found = sharing.find(session, caller, name)
        with sharing.reading(session, caller, found.organization):
            record = found.record or versions.representative(session, found.expert)
        if record is None:
            raise ConflictError(f"'{name}' has no version yet, so nothing is near it.")
        compared = neighbours.to_compare(session, caller, record)
        of_dataset = neighbours.of_dataset(session, caller, record)
    return {
        "object": "expert.neighbours",
        "model": name if "@" in name else f"{name}@v{record.version.version}",
        "alike": _alike(context, record, compared),
        "same_dataset": [_shown(listed) for listed in of_dataset],
    }


def _alike(context: Context, record: versions.VersionRecord, compared: list[Listed]) -> list[dict[str, Any]]:
    own = strengths.read_vectors(context.store, record)
    if own is None:
        return []
    measured = []
    for listed in compared:
        theirs = strengths.read_vectors(context.store, listed.record)
        cosine = None if theirs is None else strengths.cosine(own, theirs)
        if cosine is not None:
            measured.append((cosine, listed))
    measured.sort(key=lambda pair: -pair[0])
    return [_shown(listed) | {"cosine": cosine} for cosine, listed in measured]


def _shown(listed: Listed) -> dict[str, Any]:
    return {"model": listed.record.name, "owner": listed.owner, "visibility": listed.record.expert.visibility}
