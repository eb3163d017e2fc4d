"""``/v1/files``: datasets in, in the OpenAI dialect."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel as Schema
from pydantic import ConfigDict
from sqlalchemy.orm import Session

from zhub import states
from zhub.completions.collecting import provenance_of
from zhub.database.sessions import tenant_session
from zhub.datasets import files, token_counts
from zhub.datasets.validated import require_validated
from zhub.datasets.validation import MAX_FILE_BYTES
from zhub.errors import InvalidRequestError
from zhub.ids import parse_id, public_id
from zhub.manifest import CHUNK_BYTES
from zhub.models import BaseModel, DatasetVersion, Job, TokenCount
from zhub.objects.reservations import reserve
from zhub.process.wakeup import SCHEDULER
from zhub.registry import base_models, classification, sharing
from zhub.registry.classification import Classified
from zhub.storage.keys import dataset_key
from zhub.storage.object_store import put_content
from zhub.tenancy import audit, quotas
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, ContextDep
from zhub_api.known_parameters import KnownForm
from zhub_api.pages import page
from zhub_api.rights import needs
from zhub_api.streams import BYTES, answering

router = APIRouter(prefix="/v1/files")


class TokenCountRequest(Schema):
    """``model``: the base whose tokenizer and context count, or an expert version of it."""

    model_config = ConfigDict(extra="forbid")
    model: str


@router.post("", dependencies=[needs("files:write")])
def create_file(
    caller: CallerDep,
    context: ContextDep,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    _known: KnownForm,
) -> dict[str, Any]:
    """Store a JSONL file and enqueue its validation; follow ``status`` until it is ``processed`` or ``error``.

    Not in the dialect: ``is_new`` is false where the same bytes were there under the same name.
    """
    files.check_purpose(purpose)
    sha256, size_bytes = measure(file.file, limit=MAX_FILE_BYTES)
    with tenant_session(context.engine, caller.org_id) as session:
        quotas.check_bytes(session, caller.org_id, size_bytes)
        reserve(session, dataset_key(caller.org_id, sha256))
    # Object first, row second: a crash in between leaves an orphan to collect, never a row without its bytes.
    put_content(context.store, dataset_key(caller.org_id, sha256), file.file, size_bytes=size_bytes)
    with tenant_session(context.engine, caller.org_id) as session:
        version = files.register(
            session,
            caller,
            filename=file.filename or "dataset.jsonl",
            purpose=purpose,
            size_bytes=size_bytes,
            sha256=sha256,
        )
        answer = file_object(version) | {"is_new": files.is_new(session, version)}
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("", dependencies=[needs("files:read")])
def list_files(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
    search: Annotated[
        str | None,
        Query(min_length=1, max_length=200, description="Only files with this text in their name, whatever its case."),
    ] = None,
) -> dict[str, Any]:
    last = parse_id("file", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        versions, has_more = files.list_files(
            session,
            caller.project_id,
            after=last,
            limit=limit,
            oldest_first=order == "asc",
            purpose=purpose,
            search=search,
        )
        ids = [version.id for version in versions]
        known, made_of = classification.classified(session, ids), provenance_of(session, versions)
        objects = [file_object(version, known.get(version.id, ()), made_of.get(version.id)) for version in versions]
        return page(objects, has_more=has_more)


@router.get("/{file_id}", dependencies=[needs("files:read")])
def retrieve_file(caller: CallerDep, context: ContextDep, file_id: str) -> dict[str, Any]:
    with tenant_session(context.engine, caller.org_id) as session:
        version = files.get(session, caller.project_id, parse_id("file", file_id))
        known = classification.classified(session, [version.id]).get(version.id, ())
        return file_object(version, known, provenance_of(session, [version]).get(version.id))


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses=answering(BYTES),
    dependencies=[needs("files:read")],
)
def file_content(caller: CallerDep, context: ContextDep, file_id: str) -> StreamingResponse:
    with tenant_session(context.engine, caller.org_id) as session:
        version = files.get(session, caller.project_id, parse_id("file", file_id))
    headers = {"content-length": str(version.size_bytes)}
    return StreamingResponse(context.store.open(version.key), media_type=BYTES, headers=headers)


@router.post("/{file_id}/token_counts", dependencies=[needs("jobs:write")])
def count_tokens(caller: CallerDep, context: ContextDep, file_id: str, request: TokenCountRequest) -> dict[str, Any]:
    """Find the rows that have more tokens than the context of a base. Repeat it until ``status`` is ``counted``.

    ``tokenizer_warning`` says what it costs where the base's tokenizer splits the language of the rows into many times
    the tokens of English.
    Not in the dialect. What was counted once is not counted again; ``failed`` is tried again by the next request.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        base = base_of(session, caller, request.model)
        base_models.require_ready(base)
        file = require_validated(session, caller.project_id, file_id, param="file_id")
        count, job = token_counts.request(session, file, base)
        answer = token_count_object(file_id, base.name, count, job)
    context.wakeup.notify(SCHEDULER)
    return answer


@router.delete("/{file_id}", dependencies=[needs("files:write")])
def delete_file(
    caller: CallerDep,
    context: ContextDep,
    file_id: str,
    force: Annotated[
        bool, Query(description="Not in the dialect: also where published versions were trained on it.")
    ] = False,
    detach: Annotated[
        bool, Query(description="Not in the dialect: cancel the jobs and gates that need it, and pause its schedules.")
    ] = False,
) -> dict[str, Any]:
    """Delete a file. One that something needs is refused, by the name of what needs it."""
    with tenant_session(context.engine, caller.org_id) as session:
        files.delete(session, caller.project_id, parse_id("file", file_id), also_trained=force, detach=detach)
        audit.record(session, caller, "file.deleted", file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def base_of(session: Session, caller: Caller, model: str) -> BaseModel:
    """The base of this name, or that of an expert version."""
    if "@" in model:
        return sharing.get_version(session, caller, model, "use").base
    return base_models.get(session, caller.org_id, model)


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


def file_object(
    version: DatasetVersion, classified: Sequence[Classified] = (), completions: dict[str, Any] | None = None
) -> dict[str, Any]:
    """``classified``: the experts whose prompts a file for a classifier has, by their labels. ``completions``: of which
    stored ones it was made, if it was."""
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
        "dataset": files.dataset_name(version.filename),
        "version": version.version,
        "classifies": [known._asdict() for known in classified],
        "completions": completions,
        "validation": validation and {key: value for key, value in validation.items() if key not in _INTERNAL},
    }


def token_count_object(file_id: str, base: str, count: TokenCount, job: Job) -> dict[str, Any]:
    status = {states.SUCCEEDED: "counted", states.FAILED: "failed", states.CANCELLED: "failed"}.get(job.state)
    return {
        "object": "file.token_counts",
        "file": file_id,
        "model": base,
        "status": status or "counting",
        "error": job.error,
        "context_length": count.context_length,
        "long_row_count": count.long_row_count,
        "long_rows": [{"line": line, "tokens": tokens} for line, tokens in count.long_rows or []],
        "tokenizer_warning": count.tokenizer_warning,
    }


_INTERNAL = ("first_line_with_target", "first_line_without_target")
