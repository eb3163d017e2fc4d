"""``/v1/expert_exports``: expert versions in the forms that other software reads, written by a worker."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field

from zhub.admission import limits
from zhub.database.sessions import tenant_session
from zhub.ids import parse_id, public_id
from zhub.kinds import table
from zhub.process.wakeup import SCHEDULER
from zhub.queue.desired import request_cancel
from zhub.queue.statuses import status_of
from zhub.registry import exports
from zhub.registry.peft_config import MAX_RANK
from zhub.specs import ExportFormat
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs
from zhub_api.routes.fine_tuning import queue_object
from zhub_api.streams import BYTES, answering

router = APIRouter(prefix="/v1/expert_exports")


class ExportRequest(Schema):
    """What to export, and how."""

    model_config = ConfigDict(extra="forbid")
    model: str
    """A version, ``<project>.<expert>@v<number>``, or an alias that points to one now."""
    format: ExportFormat
    """``merged``: a directory as transformers has it, the base's weights with the expert folded in. ``lora``: a LoRA of
    PEFT, exact for experts that are low-rank, else the best approximation of a rank. ``psoft``: adapters of PEFT that
    are exactly an expert of the kind ``svf``. ``zhub``: one file for another zhub."""
    rank: Annotated[int, Field(strict=True, ge=1, le=MAX_RANK)] | None = None
    """Of a LoRA, at most; null: the expert's own where it has one, else 64."""
    cluster: str = limits.DEFAULT_CLUSTER
    """Which workers write it, by the name of their agent's cluster."""


@router.post("", dependencies=[needs("models:read", "jobs:write")])
def create_export(caller: CallerDep, context: ContextDep, request: ExportRequest) -> dict[str, Any]:
    """Export a version; follow ``status`` until it has ended. What was exported already is answered at once.

    The files are kept for some days: ask again for those that are not there any more.
    """
    asked = exports.ExportRequest(request.model, request.format, request.rank, request.cluster)
    with tenant_session(context.engine, caller.org_id) as session:
        limits.check_queue(session, caller.org_id, table.names())
        answer = _object(exports.create(session, caller, asked))
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/{export_id}", dependencies=[needs("models:read")])
def retrieve_export(caller: CallerDep, context: ContextDep, export_id: str) -> dict[str, Any]:
    """An export, with its files once it has succeeded."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _object(exports.get(session, caller.project_id, parse_id("expert export", export_id)))


@router.get("/{export_id}/queue", dependencies=[needs("jobs:read")])
def explain_export(caller: CallerDep, context: ContextDep, export_id: str) -> dict[str, Any]:
    """What the export waits for, in the form of a fine-tuning job's queue."""
    with tenant_session(context.engine, caller.org_id) as session:
        record = exports.get(session, caller.project_id, parse_id("expert export", export_id))
        return queue_object(session, record.job, "expert_export", public_id("expert export", record.export.id))


@router.post("/{export_id}/cancel", dependencies=[needs("jobs:write")])
def cancel_export(caller: CallerDep, context: ContextDep, export_id: str) -> dict[str, Any]:
    """Request that the export stops."""
    with tenant_session(context.engine, caller.org_id) as session:
        record = exports.get(session, caller.project_id, parse_id("expert export", export_id))
        request_cancel(session, record.job.id)
        session.refresh(record.job)
        answer = _object(record)
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get(
    "/{export_id}/files/{filename:path}",
    response_class=StreamingResponse,
    responses=answering(BYTES),
    dependencies=[needs("models:read")],
)
def export_file(caller: CallerDep, context: ContextDep, export_id: str, filename: str) -> StreamingResponse:
    """The bytes of a file of the export; check them against its digest."""
    with tenant_session(context.engine, caller.org_id) as session:
        record = exports.get(session, caller.project_id, parse_id("expert export", export_id))
        key = exports.file_key(record, filename)
    return StreamingResponse(context.store.open(key), media_type=BYTES)


def _object(record: exports.ExportRecord) -> dict[str, Any]:
    export, job = record.export, record.job
    return {
        "id": public_id("expert export", export.id),
        "object": "expert_export",
        "created_at": int(export.created_at.timestamp()),
        "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
        "status": status_of(job),
        "error": job.error,
        "cluster": job.cluster,
        "model": record.version.name,
        "digest": record.version.version.digest,
        "base_model": record.version.base.name,
        "format": export.format,
        "rank": export.rank,
        "files": export.files,
        "facts": export.facts,
    }
