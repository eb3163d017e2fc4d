"""``/v1/models`` and ``/v1/base_models``: what can be asked, and what it is made of."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from zhub.admission import limits
from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError
from zhub.models import BaseModel
from zhub.objects.reservations import reserve
from zhub.process.wakeup import SCHEDULER
from zhub.registry import base_models, deletion, listing, releases, versions
from zhub.registry.names import AUTO, VERSION_NAME
from zhub.registry.resolve import resolve
from zhub.specs import StoredFile
from zhub.storage.keys import base_file_key
from zhub.storage.object_store import put_content
from zhub.tenancy import audit, quotas
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, Context, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs
from zhub_api.routes.fine_tuning import queue_object
from zhub_api.routes.uploads import MAX_MODEL_FILE_BYTES, spool
from zhub_api.streams import BINARY, BYTES

router = APIRouter(prefix="/v1")

MAX_MODELS = 1000
MAX_RELEASES = 100


@router.get("/models", dependencies=[needs("models:read")])
def list_models(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_MODELS)] = MAX_MODELS,
) -> dict[str, Any]:
    """The project's expert versions that are not archived, newest first, then the newest versions of releases, the base
    models and the router ``auto``.

    The dialect's clients read the first page and no other. So it is long, and the releases, the base models and
    ``auto`` are on it, whatever ``limit`` is; the pages that follow ``last_id`` have the older expert versions.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        newest, has_more = listing.list_versions(
            session,
            caller.project_id,
            after=after,
            limit=limit,
            only=listing.Filter(answering=True),
            with_manifests=False,
        )
        experts = page([_version_model(record) for record in newest], has_more=has_more)
        if after is not None:
            return experts
        ready = session.scalars(select(BaseModel).where(BaseModel.status == "ready").order_by(BaseModel.name))
        bases = [_base_model_model(base) for base in ready]
        newest_releases, _ = releases.list_versions(session, caller, release=None, after=None, limit=MAX_RELEASES)
        routers = [_version_model(record) for record in newest_releases]
    router_model = {"id": AUTO, "object": "model", "created": 0, "owned_by": "zhub", "kind": "router"}
    return experts | {"data": [*experts["data"], *routers, *bases, router_model]}


@router.get("/models/{model:path}", dependencies=[needs("models:read")])
def retrieve_model(caller: CallerDep, context: ContextDep, model: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        resolved = resolve(session, caller, model, [])
        if resolved.release is not None:
            return _version_model(resolved.release) | ({"id": model} if "@" not in model else {})
        if resolved.experts:
            record = resolved.experts[0].record
            if isinstance(record, versions.CheckpointRecord):
                return _checkpoint_model(record)
            return _version_model(record)
        return _base_model_model(resolved.base) | {"id": model}


@router.delete("/models/{model:path}", dependencies=[needs("models:write")])
def delete_model(caller: CallerDep, context: ContextDep, model: str) -> dict[str, Any]:
    """Delete an expert version, as the dialect's ``models.delete`` does. Refused while an alias or a job needs it."""
    with tenant_session(context.engine, caller.org_id) as session:
        if not VERSION_NAME.fullmatch(model):
            # An alias names another version tomorrow, and what has another name was not made by a training.
            resolve(session, caller, model, [])
            raise InvalidRequestError(
                f"'{model}' is no expert version: only these are deleted, as <project>.<expert>@v3.", param="model"
            )
        record = versions.get_version(session, caller.project_id, model)
        deletion.delete_version(session, caller, record)
        audit.record(session, caller, "expert.deleted", record.name, before={"digest": record.version.digest})
        return {"id": record.name, "object": "model", "deleted": True}


class BaseModelRequest(Schema):
    """A base model to add: by files that follow, or from the Hugging Face hub at a commit."""

    model_config = ConfigDict(extra="forbid")
    name: str
    private: bool | None = None
    """Whether it is for your organisation only; null: for everybody, if the key may add such, else private."""
    hub_id: str | None = None
    hub_revision: str | None = None
    cluster: str = limits.DEFAULT_CLUSTER
    """Which workers decompose it, by the name of their agent's cluster."""
    rank: Annotated[int, Field(strict=True, ge=8, le=65_536, multiple_of=8)] | None = None
    """Of how many leading singular directions of each matrix its basis shall be, a multiple of 8, for a base that is
    too large for all of them; null: of all. The base answers as it is, and experts move it along these directions."""


@router.post("/base_models", dependencies=[needs("base_models:write")])
def create_base_model(caller: CallerDep, context: ContextDep, request: BaseModelRequest) -> dict[str, Any]:
    """Begin to add a base model; PUT its files, then POST ``/complete``."""
    with tenant_session(context.engine, caller.org_id) as session:
        base = base_models.create(session, caller, **request.model_dump())
        session.refresh(base)
        return base_model_object(base)


@router.put(
    "/base_models/{name}/files/{filename}",
    openapi_extra={"requestBody": {"required": True, "content": {BYTES: {"schema": BINARY}}}},
    dependencies=[needs("base_models:write")],
)
async def put_base_model_file(
    caller: CallerDep, context: ContextDep, name: str, filename: str, request: Request
) -> dict[str, Any]:
    """Store one file of the model's directory; the body is the file itself."""
    base_models.check_file_name(filename)
    # Before the body is read: nobody fills the disk with files of a base model that are then refused.
    await run_in_threadpool(_check_may_change, context, caller, name)
    async with spool(request, limit=MAX_MODEL_FILE_BYTES) as upload:

        def record() -> dict[str, Any]:
            key = base_file_key(upload.sha256)
            with tenant_session(context.engine, caller.org_id) as session:
                if base_models.check_may_change(session, caller, name).private:
                    quotas.check_bytes(session, caller.org_id, upload.size_bytes)
                reserve(session, key)
            put_content(context.store, key, upload.file, size_bytes=upload.size_bytes)
            stored = StoredFile(name=filename, key=key, sha256=upload.sha256, size_bytes=upload.size_bytes)
            with tenant_session(context.engine, caller.org_id) as session:
                return base_model_object(base_models.add_file(session, caller, name, stored))

        return await run_in_threadpool(record)


def _check_may_change(context: Context, caller: Caller, name: str) -> None:
    with tenant_session(context.engine, caller.org_id) as session:
        base_models.check_may_change(session, caller, name)


@router.post("/base_models/{name}/complete", dependencies=[needs("base_models:write")])
def complete_base_model(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    """All files are there: decompose. Follow ``status`` until it is ``ready`` or ``error``."""
    with tenant_session(context.engine, caller.org_id) as session:
        answer = base_model_object(base_models.complete(session, caller, name))
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/base_models", dependencies=[needs("models:read")])
def list_base_models(
    caller: CallerDep, context: ContextDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """The base models, by name."""
    with tenant_session(context.engine, caller.org_id) as session:
        bases, has_more = base_models.list_base_models(session, after=after, limit=limit)
        return page([base_model_object(base) for base in bases], has_more=has_more)


@router.get("/base_models/{name}", dependencies=[needs("models:read")])
def retrieve_base_model(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        return base_model_object(base_models.get(session, caller.org_id, name))


@router.get("/base_models/{name}/queue", dependencies=[needs("jobs:read")])
def explain_decomposition(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    """What the decomposition waits for, as of a fine-tuning job; only for the organisation that added the base."""
    with tenant_session(context.engine, caller.org_id) as session:
        job = base_models.decomposition(session, base_models.get(session, caller.org_id, name))
        return queue_object(session, job, "base_model", name)


def _version_model(record: versions.VersionRecord | releases.ReleaseRecord) -> dict[str, Any]:
    return {
        "id": record.name,
        "object": "model",
        "created": int(record.version.created_at.timestamp()),
        "owned_by": record.project.name,
        "kind": "expert" if isinstance(record, versions.VersionRecord) else "release",
        "base_model": record.base.name,
        "digest": record.version.digest,
    }


def _checkpoint_model(record: versions.CheckpointRecord) -> dict[str, Any]:
    return {
        "id": record.name,
        "object": "model",
        "created": int(record.checkpoint.created_at.timestamp()),
        "owned_by": record.project.name,
        "kind": "checkpoint",
        "base_model": record.base.name,
        "digest": record.checkpoint.digest,
    }


def _base_model_model(base: BaseModel) -> dict[str, Any]:
    return {
        "id": base.name,
        "object": "model",
        "created": int(base.created_at.timestamp()),
        "owned_by": "zhub",
        "kind": "base",
        "is_default": base.is_default,
    }


def base_model_object(base: BaseModel) -> dict[str, Any]:
    return {
        "id": base.name,
        "object": "base_model",
        "created_at": int(base.created_at.timestamp()),
        "status": base.status,
        "error": base.error,
        "is_default": base.is_default,
        "private": base.private,
        "cluster": base.cluster,
        "rank": base.rank,
        "files": [file["name"] for file in base.source["files"]],
        "hub_id": base.source["hub_id"],
        "hub_revision": base.source["hub_revision"],
        "weights_fingerprint": base.weights_fingerprint,
        "basis_fingerprint": base.basis_fingerprint,
        "details": base.details,
    }
