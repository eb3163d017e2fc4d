"""``/v1/experts``: experts and their versions: listed, shown, described, renamed, archived, deleted."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.errors import NotFoundError, ObjectMissingError
from zhub.evaluation import feedback
from zhub.evaluation.forgetting import Part, forgetting_of
from zhub.ids import parse_id, public_id
from zhub.manifest import MANIFEST_FILE, Evaluation, Manifest
from zhub.models import Alias, Expert, ExpertChange, ExpertVersion
from zhub.registry import (
    aliases,
    base_models,
    classification,
    deletion,
    life,
    listing,
    metadata,
    verification,
    versions,
)
from zhub.registry.metadata import Change
from zhub.registry.publish import public_job_id
from zhub.tenancy import audit
from zhub.tenancy.keys import Caller
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs
from zhub_api.streams import BYTES, answering

router = APIRouter(prefix="/v1/experts")

MAX_TAGS_ASKED = 8


@router.get("", dependencies=[needs("models:read")])
def list_experts(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    search: Annotated[str | None, Query(max_length=200)] = None,
    base: str | None = None,
    tag: Annotated[list[str], Query(max_length=MAX_TAGS_ASKED)] = [],  # noqa: B006  # FastAPI copies it
    alias: str | None = None,
    archived: bool = False,
    sort: listing.Sort = "newest",
) -> dict[str, Any]:
    """The project's expert versions with their manifests.

    ``search`` is a part of an expert's name or of a description; ``base`` a base model; ``tag`` a key or ``key=value``,
    of the version or its expert, and each one given must be there; ``alias`` one that points to the version. Archived
    ones are on the list with ``archived`` only. ``sort``: the ``newest`` first; by the ``name`` of the expert, the
    newest of each first; the best ``score`` on the test rows first.
    """
    tags = {key: value if is_given else None for key, is_given, value in (asked.partition("=") for asked in tag)}
    with tenant_session(context.engine, caller.org_id) as session:
        if base is not None:
            base_models.get(session, caller.org_id, base)
        only = listing.Filter(search=search, base=base, alias=alias, tags=tags, archived=archived)
        records, has_more = listing.list_versions(
            session, caller.project_id, after=after, limit=limit, only=only, sort=sort
        )
        return page(version_objects(session, records), has_more=has_more)


@router.get("/{name}", dependencies=[needs("models:read")])
def retrieve_expert(caller: CallerDep, context: ContextDep, name: str) -> dict[str, Any]:
    """One version with its manifest, by ``<project>.<expert>@v<number>``; or an expert, by ``<project>.<expert>``."""
    with tenant_session(context.engine, caller.org_id) as session:
        return _object(session, caller, *_named(session, caller, name))


@router.patch("/{name}", dependencies=[needs("models:write")])
def change_expert(caller: CallerDep, context: ContextDep, name: str, request: Change) -> dict[str, Any]:
    """Change what is said of an expert or of a version: its description, its tags, whether it is archived; or rename
    an expert."""
    with tenant_session(context.engine, caller.org_id) as session:
        expert, record = _named(session, caller, name)
        metadata.change(session, caller, expert, record.version if record else None, request)
        after = request.model_dump(mode="json", exclude_unset=True)
        audit.record(session, caller, "expert.updated", name, after=after)
        return _object(session, caller, expert, record)


@router.delete("/{name}", dependencies=[needs("models:write")])
def delete_expert(caller: CallerDep, context: ContextDep, name: str, detach: bool = False) -> dict[str, Any]:
    """Delete a version; or an expert with all its versions. Refused while an alias, a schedule or a job needs it.

    With ``detach`` that is detached: an alias then points to nothing, a release version that pins it is deleted, a job
    or gate is cancelled, a schedule is paused.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        expert, record = _named(session, caller, name)
        if record is None:
            deletion.delete_expert(session, caller, expert, detach=detach)
            audit.record(session, caller, "expert.deleted", name)
            return {"id": f"{caller.project}.{expert.name}", "object": "expert", "deleted": True}
        deletion.delete_version(session, caller, record, detach=detach)
        audit.record(session, caller, "expert.deleted", record.name, before={"digest": record.version.digest})
        return {"id": record.name, "object": "expert.version", "deleted": True}


@router.get("/{name}/changes", dependencies=[needs("models:read")])
def list_changes(
    caller: CallerDep,
    context: ContextDep,
    name: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """Who changed what of an expert and its versions, or of one version, newest first."""
    last = parse_id("expert change", after) if after is not None else None
    with tenant_session(context.engine, caller.org_id) as session:
        expert, record = _named(session, caller, name)
        version = record.version if record else None
        newest, has_more = metadata.list_changes(session, expert, version, after=last, limit=limit)
        return page(_change_objects(session, caller, expert, newest), has_more=has_more)


@router.get(
    "/{name}/files/{filename}",
    response_class=StreamingResponse,
    responses=answering(BYTES),
    dependencies=[needs("models:read")],
)
def version_file(caller: CallerDep, context: ContextDep, name: str, filename: str) -> StreamingResponse:
    """The bytes of ``manifest.json`` or of a file that it lists; check them against its digests.

    ``answers.jsonl`` has what base and expert answered to the test rows and to the general suite, a JSON object a line:
    of each what the expert lost first, then what it gained.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        version = versions.get_version(session, caller.project_id, name).version
    manifest = Manifest.model_validate(version.manifest)
    if filename not in (MANIFEST_FILE, *(file.name for file in manifest.files)):
        raise NotFoundError("file", f"{name}/{filename}")
    try:
        content = context.store.open(f"{version.key_prefix}/{filename}")
    except ObjectMissingError:
        verification.mark_missing(context.engine, caller.org_id, version.id, filename)
        raise
    return StreamingResponse(content, media_type=BYTES)


def _named(session: Session, caller: Caller, name: str) -> tuple[Expert, versions.VersionRecord | None]:
    if "@" not in name:
        return versions.get_expert(session, caller, name), None
    record = versions.get_version(session, caller.project_id, name)
    return record.expert, record


def _object(session: Session, caller: Caller, expert: Expert, record: versions.VersionRecord | None) -> dict[str, Any]:
    return version_objects(session, [record])[0] if record else _expert_object(session, caller, expert)


def version_objects(session: Session, records: Sequence[versions.VersionRecord]) -> list[dict[str, Any]]:
    ids = [record.version.id for record in records]
    summaries, names = feedback.summaries(session, ids), aliases.of_versions(session, ids)
    parents, successors = versions.parents(session, records), life.successors(session, records)
    classifies = classification.classified_by(session, records)
    return [
        {
            "id": record.name,
            "object": "expert.version",
            "created_at": int(version.created_at.timestamp()),
            "expert": record.expert.name,
            "version": version.version,
            "base_model": record.base.name,
            "digest": version.digest,
            "size_bytes": version.size_bytes,
            "job": public_job_id(version),
            "uri": version.key_prefix,
            "description": version.description,
            "tags": version.tags,
            "archived": version.archived_at is not None or record.expert.archived_at is not None,
            "lost_files": version.lost_files or [],
            "state": version.state,
            "state_reason": version.state_reason,
            "successor": successors.get(record.name),
            "damage": version.damage,
            "aliases": names.get(version.id, []),
            "parent": parents.get(version.manifest["parent_digest"]),
            "classifies": [known._asdict() for known in classifies.get(version.id, ())],
            "feedback": {"count": summary.count, "mean_score": summary.mean_score},
            "general": _general_object(version.manifest["evaluations"]),
            "manifest": version.manifest,
        }
        for record in records
        for version, summary in [(record.version, summaries[record.version.id])]
    ]


def _general_object(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the version does better and worse beside its task, whole and by category; None where nobody measured it."""
    forgetting = forgetting_of(map(Evaluation.model_validate, evaluations))
    if forgetting is None:
        return None

    def shown(part: Part) -> dict[str, Any]:
        return part.evaluation.model_dump(exclude={"split"}) | {"name": part.name, "verdict": part.verdict}

    return {
        **shown(forgetting.whole),
        "sentence": forgetting.sentence,
        "categories": [shown(part) for part in forgetting.categories],
    }


def _expert_object(session: Session, caller: Caller, expert: Expert) -> dict[str, Any]:
    of_expert = (ExpertVersion.expert_id == expert.id, ExpertVersion.deleted_at.is_(None))
    count, newest = session.execute(select(func.count(), func.max(ExpertVersion.version)).where(*of_expert)).one()
    pointing = select(Alias.name).where(Alias.expert_id == expert.id, Alias.version_id.is_not(None))
    name = f"{caller.project}.{expert.name}"
    return {
        "id": name,
        "object": "expert",
        "created_at": int(expert.created_at.timestamp()),
        "name": expert.name,
        "former_names": expert.former_names,
        "description": expert.description,
        "tags": expert.tags,
        "archived": expert.archived_at is not None,
        "versions": count,
        "newest": f"{name}@v{newest}" if newest is not None else None,
        "aliases": list(session.scalars(pointing.order_by(Alias.name))),
    }


def _change_objects(
    session: Session, caller: Caller, expert: Expert, changes: Sequence[ExpertChange]
) -> list[dict[str, Any]]:
    ids = [change.version_id for change in changes if change.version_id is not None]
    records = versions.by_id(session, ids)

    def name(version_id: uuid.UUID | None) -> str:
        return f"{caller.project}.{expert.name}" if version_id is None else records[version_id].name

    return [
        {
            "id": public_id("expert change", change.id),
            "object": "expert.change",
            "created_at": int(change.created_at.timestamp()),
            "subject": name(change.version_id),
            "by": change.by,
            "changes": change.changes,
        }
        for change in changes
    ]
