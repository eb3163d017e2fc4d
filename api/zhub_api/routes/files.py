"""``/v1/files``: datasets in, in the OpenAI dialect."""

import hashlib
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from zhub.database.sessions import tenant_session
from zhub.datasets import files
from zhub.errors import InvalidRequestError
from zhub.ids import parse_id, public_id
from zhub.manifest import CHUNK_BYTES
from zhub.models import DatasetVersion
from zhub.process.wakeup import SCHEDULER
from zhub.storage.keys import dataset_key
from zhub.tenancy import quotas
from zhub_api.context import CallerDep, ContextDep
from zhub_api.known_parameters import KnownForm
from zhub_api.pages import page
from zhub_api.streams import BYTES, answering

router = APIRouter(prefix="/v1/files")

MAX_FILE_BYTES = 2 << 30


@router.post("")
def create_file(
    caller: CallerDep,
    context: ContextDep,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    _known: KnownForm,
) -> dict[str, Any]:
    """Store a JSONL file and enqueue its validation; follow ``status`` until it is ``processed`` or ``error``."""
    caller.require("files:write")
    files.check_purpose(purpose)
    sha256, size_bytes = measure(file.file, limit=MAX_FILE_BYTES)
    with tenant_session(context.engine, caller.org_id) as session:
        quotas.check_bytes(session, caller.org_id, size_bytes)
    # Object first, row second: a crash in between leaves an orphan to sweep, never a row without its bytes.
    context.store.put(dataset_key(caller.org_id, sha256), file.file)
    with tenant_session(context.engine, caller.org_id) as session:
        version = files.register(
            session,
            caller,
            filename=file.filename or "dataset.jsonl",
            purpose=purpose,
            size_bytes=size_bytes,
            sha256=sha256,
        )
        answer = file_object(version)
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("")
def list_files(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    caller.require("files:read")
    statement = select(DatasetVersion).where(
        DatasetVersion.project_id == caller.project_id, DatasetVersion.deleted_at.is_(None)
    )
    if purpose is not None:
        statement = statement.where(DatasetVersion.purpose == purpose)
    column = DatasetVersion.id
    if after is not None:
        last = parse_id("file", after)
        statement = statement.where(column < last if order == "desc" else column > last)
    statement = statement.order_by(column.desc() if order == "desc" else column.asc()).limit(limit + 1)
    with tenant_session(context.engine, caller.org_id) as session:
        found = [file_object(version) for version in session.scalars(statement)]
    return page(found[:limit], has_more=len(found) > limit)


@router.get("/{file_id}")
def retrieve_file(caller: CallerDep, context: ContextDep, file_id: str) -> dict[str, Any]:
    caller.require("files:read")
    with tenant_session(context.engine, caller.org_id) as session:
        return file_object(files.get(session, caller.project_id, parse_id("file", file_id)))


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=answering(BYTES))
def file_content(caller: CallerDep, context: ContextDep, file_id: str) -> StreamingResponse:
    caller.require("files:read")
    with tenant_session(context.engine, caller.org_id) as session:
        version = files.get(session, caller.project_id, parse_id("file", file_id))
    headers = {"content-length": str(version.size_bytes)}
    return StreamingResponse(context.store.open(version.key), media_type=BYTES, headers=headers)


@router.delete("/{file_id}")
def delete_file(caller: CallerDep, context: ContextDep, file_id: str) -> dict[str, Any]:
    caller.require("files:write")
    with tenant_session(context.engine, caller.org_id) as session:
        files.delete(session, caller.project_id, parse_id("file", file_id))
    return {"id": file_id, "object": "file", "deleted": True}


def measure(file: BinaryIO, *, limit: int) -> tuple[str, int]:
    """SHA-256 and size of an uploaded file, read in pieces; leaves it rewound.

    Raises:
        InvalidRequestError: more than ``limit`` bytes.
    """
    file.seek(0, 2)
    size_bytes = file.tell()
    if size_bytes > limit:
        raise InvalidRequestError(f"The file has {size_bytes:,} bytes; at most {limit:,} are accepted.", param="file")
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(CHUNK_BYTES):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest(), size_bytes


def file_object(version: DatasetVersion) -> dict[str, Any]:
    validation = version.validation
    return {
        "id": public_id("file", version.id),
        "object": "file",
        "bytes": version.size_bytes,
        "created_at": int(version.created_at.timestamp()),
        "expires_at": None,
        "filename": version.filename,
        "purpose": version.purpose,
        "status": version.status,
        "status_details": version.status_details,
        "sha256": version.sha256,
        "version": version.version,
        "validation": validation and {key: value for key, value in validation.items() if key not in _INTERNAL},
    }


_INTERNAL = ("first_line_with_target", "first_line_without_target")
