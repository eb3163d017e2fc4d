"""``/v1/stored_completions/datasets``: versions of datasets that are made of stored completions. Not in the dialect."""

from typing import Any

from fastapi import APIRouter

from zhub.completions import collecting
from zhub.completions.collecting import KIND, CollectionRequest
from zhub.database.sessions import tenant_session
from zhub.ids import parse_id, public_id
from zhub.models import CompletionDataset
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import Order, PageLimit, page, wanted_page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/stored_completions/datasets")


@router.post("", dependencies=[needs("files:write")])
def make_dataset(caller: CallerDep, context: ContextDep, request: CollectionRequest) -> dict[str, Any]:
    """Make the next version of a dataset of stored completions; follow ``status`` until it is ``succeeded``.

    ``file`` is then the file that a training may name, once its rows have been checked. ``where`` is read as the guide
    says: ``model:tiny rating:up since:7d metadata.team:a``.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        return dataset_object(collecting.request(session, caller, request))


@router.get("", dependencies=[needs("files:read")])
def list_datasets(
    caller: CallerDep, context: ContextDep, after: str | None = None, limit: PageLimit = 20, order: Order = "desc"
) -> dict[str, Any]:
    """The datasets of completions that were asked for, newest first."""
    with tenant_session(context.engine, caller.org_id) as session:
        wanted = wanted_page(KIND, after, limit, order)
        listed, has_more = collecting.list_datasets(session, caller.project_id, wanted)
        return page([dataset_object(made) for made in listed], has_more=has_more)


@router.get("/{collection_id}", dependencies=[needs("files:read")])
def retrieve_dataset(caller: CallerDep, context: ContextDep, collection_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return dataset_object(collecting.get(session, caller.project_id, parse_id(KIND, collection_id)))


def dataset_object(made: CompletionDataset) -> dict[str, Any]:
    return {
        "id": public_id(KIND, made.id),
        "object": "stored_completions.dataset",
        "created_at": int(made.created_at.timestamp()),
        "dataset": made.dataset,
        "where": made.where,
        "method": made.method,
        "max_rows": made.max_rows,
        "status": made.status,
        "error": made.error,
        "file": None if made.version_id is None else public_id("file", made.version_id),
        "provenance": made.provenance,
    }
