"""``/v1/releases``: a strategy and the expert versions that it pins; made, listed, shown, compared, deleted."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from zhub.database.sessions import tenant_session
from zhub.registry import aliases, release_versions, releases
from zhub.registry.names import PROD
from zhub.registry.release_versions import ReleaseRequest
from zhub.registry.releases import ReleaseRecord
from zhub.tenancy import audit
from zhub_api.context import CallerDep, ContextDep
from zhub_api.pages import page
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/releases")


@router.post("", dependencies=[needs("models:write")])
def create_release(caller: CallerDep, context: ContextDep, request: ReleaseRequest) -> dict[str, Any]:
    """Make a version of a release: a strategy, and expert versions with their weights. It never changes.

    ``strategy``: a ``mixture`` of all; the expert whose training prompts are most like the prompt (``centroid``), or
    which the base says that the prompt is for (``prompt``), or a ``classifier`` that was trained to say it, and the
    base itself where it is for none. What equals the
    release's newest version is that version: no other is made. An alias in place of a version means the one that it
    points to now.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        made = release_objects(session, [release_versions.create(session, caller, request)])[0]
        audit.record(session, caller, "release.created", made["id"], after={"strategy": made["strategy"]})
        return made


@router.get("", dependencies=[needs("models:read")])
def list_releases(
    caller: CallerDep,
    context: ContextDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    release: str | None = None,
) -> dict[str, Any]:
    """The project's release versions, newest first; with ``release`` (``<project>.<release>``), those of that one."""
    with tenant_session(context.engine, caller.org_id) as session:
        newest, has_more = releases.list_versions(session, caller, release=release, after=after, limit=limit)
        return page(release_objects(session, newest), has_more=has_more)


@router.get("/{version}", dependencies=[needs("models:read")])
def retrieve_release(caller: CallerDep, context: ContextDep, version: str) -> dict[str, Any]:
    """One version with what it pins, by ``<project>.<release>@v<number>`` or ``<project>.<release>@<alias>``."""
    with tenant_session(context.engine, caller.org_id) as session:
        return release_objects(session, [releases.get(session, caller.project_id, version)])[0]


@router.get("/{version}/diff", dependencies=[needs("models:read")])
def compare_releases(
    caller: CallerDep, context: ContextDep, version: str, against: str | None = None
) -> dict[str, Any]:
    """What differs in how a version answers from how ``against`` does: strategy, base, classifier, and of each expert
    its version, weight and description. Null on the side that does not have it. Without ``against``: from the release's
    ``@prod``.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        after = releases.get(session, caller.project_id, version)
        before = releases.get(session, caller.project_id, against or f"{version.partition('@')[0]}@{PROD}")
        differences = release_versions.differences(session, before, after)
    return {
        "object": "release.diff",
        "from": before.name,
        "to": after.name,
        "differences": [asdict(difference) for difference in differences],
    }


@router.delete("/{version}", dependencies=[needs("models:write")])
def delete_release(caller: CallerDep, context: ContextDep, version: str) -> dict[str, Any]:
    """Delete a release version, which then pins nothing. Refused while an alias sends requests to it."""
    with tenant_session(context.engine, caller.org_id) as session:
        record = releases.get(session, caller.project_id, version)
        releases.delete(session, record)
        audit.record(session, caller, "release.deleted", record.name)
        return {"id": record.name, "object": "release.version", "deleted": True}


def release_objects(session: Session, records: Sequence[ReleaseRecord]) -> list[dict[str, Any]]:
    pins = releases.pinned(session, records)
    names = aliases.of_versions(session, [record.version.id for record in records])
    classifiers = releases.classifiers(session, records)
    return [
        {
            "id": record.name,
            "object": "release.version",
            "created_at": int(record.version.created_at.timestamp()),
            "release": record.release.name,
            "version": record.version.version,
            "base_model": record.base.name,
            "strategy": record.version.strategy,
            "experts": [
                {
                    "model": pin.record.name,
                    "digest": pin.record.version.digest,
                    "weight": pin.weight,
                    "description": pin.description,
                }
                for pin in pins[record.version.id]
            ],
            "classifier": {"model": asked.name, "digest": asked.version.digest} if asked else None,
            "digest": record.version.digest,
            "description": record.version.description,
            "by": record.version.by,
            "aliases": names.get(record.version.id, []),
        }
        for record in records
        for asked in [classifiers.get(record.version.id)]
    ]
