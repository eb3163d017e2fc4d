"""``/v1/expert_imports``: experts that were made elsewhere become versions, once a worker has tried them."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from sqlalchemy.orm import Session

from zhub.admission import limits
from zhub.database.sessions import tenant_session
from zhub.errors import InvalidRequestError
from zhub.ids import new_id, parse_id, public_id
from zhub.kinds import table
from zhub.manifest import FileEntry
from zhub.models import Job
from zhub.process.wakeup import SCHEDULER
from zhub.queue.desired import request_cancel
from zhub.queue.statuses import status_of
from zhub.registry import imports, versions
from zhub.registry.publish import published
from zhub.storage.keys import import_prefix
from zhub.tenancy import quotas
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, ContextDep
from zhub_api.known_parameters import KnownForm
from zhub_api.rights import needs
from zhub_api.routes.experts import version_objects
from zhub_api.routes.files import measure
from zhub_api.routes.fine_tuning import queue_object

router = APIRouter(prefix="/v1/expert_imports")

MAX_FILES = 4


@router.post("", dependencies=[needs("models:write", "jobs:write")])
def create_import(
    caller: CallerDep,
    context: ContextDep,
    name: Annotated[str, Form()],
    base_model: Annotated[str, Form()],
    files: Annotated[list[UploadFile], File()],
    _known: KnownForm,
    dataset: Annotated[str | None, Form()] = None,
    cluster: Annotated[str, Form()] = limits.DEFAULT_CLUSTER,
) -> dict[str, Any]:
    """Import a LoRA that PEFT wrote, or a version of another zhub; follow ``status`` until it has ended.

    ``files`` are ``adapter_config.json`` and ``adapter_model.safetensors``; or ``manifest.json``, ``z.safetensors`` and
    ``routing.safetensors``, with the ``probe.safetensors`` of an export, whose answers the worker then must find
    again. The prompts of ``dataset`` say which prompts ``auto`` takes to be the expert's; without it
    an imported LoRA answers by its name only.
    """
    if len(files) > MAX_FILES:
        raise InvalidRequestError(f"Give at most {MAX_FILES} files, found {len(files)}.", param="files")
    described_by = imports.check_file_names([file.filename or "" for file in files])
    request = imports.ImportRequest(
        name, base_model, _read(files, described_by), [_entry(file) for file in files], dataset, cluster
    )
    job_id = new_id()
    with tenant_session(context.engine, caller.org_id) as session:
        imports.check(session, caller, request)
        limits.check_queue(session, caller.org_id, table.names())
        quotas.check_bytes(session, caller.org_id, sum(file.size_bytes for file in request.files))
    # Objects first, row second: a crash in between leaves orphans to sweep, never a row without its bytes.
    for file in files:
        context.store.put(f"{import_prefix(caller.org_id, job_id)}/{file.filename}", file.file)
    with tenant_session(context.engine, caller.org_id) as session:
        answer = _object(session, imports.create(session, caller, request, job_id))
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/{import_id}", dependencies=[needs("jobs:read")])
def retrieve_import(caller: CallerDep, context: ContextDep, import_id: str) -> dict[str, Any]:
    """An import, and the version that came of it."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _object(session, _own(session, caller, import_id))


@router.get("/{import_id}/queue", dependencies=[needs("jobs:read")])
def explain_import(caller: CallerDep, context: ContextDep, import_id: str) -> dict[str, Any]:
    """What the import waits for, in the form of a fine-tuning job's queue."""
    with tenant_session(context.engine, caller.org_id) as session:
        job = _own(session, caller, import_id)
        return queue_object(session, job, "expert_import", public_id("expert import", job.id))


@router.post("/{import_id}/cancel", dependencies=[needs("jobs:write")])
def cancel_import(caller: CallerDep, context: ContextDep, import_id: str) -> dict[str, Any]:
    """Request that the import stops; no version comes of it then."""
    with tenant_session(context.engine, caller.org_id) as session:
        answer = _object(session, request_cancel(session, _own(session, caller, import_id).id))
    context.wakeup.notify(SCHEDULER)
    return answer


def _own(session: Session, caller: Caller, import_id: str) -> Job:
    return imports.get(session, caller.project_id, parse_id("expert import", import_id))


def _object(session: Session, job: Job) -> dict[str, Any]:
    session.refresh(job)
    version = published(session, job.id)
    made = version_objects(session, list(versions.by_id(session, [version.id]).values())) if version else []
    return {
        "id": public_id("expert import", job.id),
        "object": "expert_import",
        "created_at": int(job.created_at.timestamp()),
        "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
        "status": status_of(job),
        "error": job.error,
        "cluster": job.cluster,
        "name": job.spec["expert"],
        "base_model": job.spec["base"]["name"],
        "base_check": job.spec["base_check"],
        "dataset": public_id("file", job.dataset_version_id) if job.dataset_version_id else None,
        "version": made[0] if made else None,
    }


def _read(files: list[UploadFile], name: str) -> dict[str, Any]:
    """The JSON object that describes the expert; its file is rewound."""
    file = next(file.file for file in files if file.filename == name)
    raw = file.read(imports.MAX_CONFIG_BYTES + 1)
    file.seek(0)
    if len(raw) > imports.MAX_CONFIG_BYTES:
        raise InvalidRequestError(f"'{name}' has more than {imports.MAX_CONFIG_BYTES:,} bytes.", param="files")
    try:
        config = json.loads(raw, parse_constant=_refuse_constant)
        # PostgreSQL keeps neither of these: halves of characters, and NUL.
        if "\0" in json.dumps(config, ensure_ascii=False).encode().decode() or b"\\u0000" in raw:
            raise ValueError("it holds the character NUL")
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"'{name}' cannot be read as JSON: {exc}", param="files") from exc
    if not isinstance(config, dict):
        raise InvalidRequestError(f"'{name}' must hold a JSON object.", param="files")
    return config


def _entry(file: UploadFile) -> FileEntry:
    sha256, size_bytes = measure(file.file, limit=imports.MAX_WEIGHTS_BYTES)
    return FileEntry(name=file.filename or "", size_bytes=size_bytes, sha256=sha256)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
