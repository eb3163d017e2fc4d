"""Experts of others that a caller may see: of other projects of its organisation, and of other organisations.

``<organisation>.<project>.<expert>@<alias or number>`` names a version of another organisation. Its rows are read as a
guest, to whom row-level security shows what is shared and nothing else (``zhub.database.sessions.as_guest``). What a
caller may not see is answered as what does not exist. Functions take a Session and never commit.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from zhub.database.sessions import as_guest
from zhub.errors import AccessNotGrantedError, NotFoundError
from zhub.models import PERMISSIONS, Expert, ExpertGrant, ExpertVersion, Organization, Project
from zhub.registry import missing, versions
from zhub.registry.names import EXPERT_NAME, OF_ORGANIZATION
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

Permission = Literal["view", "use", "fork", "manage"]
BY_VISIBILITY: dict[str, Permission] = {"granted": "view", "public": "fork"}
"""What every other organisation may do."""
WITHIN_ORGANIZATION: Permission = "fork"
"""What the other projects of the owner's organisation may do, unless the expert is private."""


@dataclass(frozen=True)
class Found:
    """An expert that the caller may see, and a version of it where one was named.

    ``organization``: the name of its owner, where that is another one; ``name``: how the caller names the expert.
    """

    expert: Expert
    record: VersionRecord | None
    permission: Permission
    organization: str | None
    name: str


def find(session: Session, caller: Caller, name: str, needs: Permission = "view") -> Found:
    """What ``name``, of an expert or of a version, is to the caller.

    Raises:
        NotFoundError: there is none that the caller may see, which is told as where there is none.
        AccessNotGrantedError: the caller may see it, and not do this with it.
    """
    found = _find(session, caller, name)
    if PERMISSIONS.index(found.permission) < PERMISSIONS.index(needs):
        raise AccessNotGrantedError(name, needs, found.permission)
    return found


def get_version(session: Session, caller: Caller, name: str, needs: Permission) -> VersionRecord:
    """The version of this name, with which the caller may do what it ``needs``. Raises as ``find``."""
    if _is_own(caller, name):
        return versions.get_usable(session, caller.project_id, name)
    found = find(session, caller, name, needs)
    if found.record is None:
        raise missing.model(session, caller.project_id, name)
    versions.require_usable(session, found.record, name)
    return found.record


@contextmanager
def reading(session: Session, caller: Caller, organization: str | None) -> Iterator[None]:
    """Read more of what was found: as a guest where it is of another organisation."""
    if organization is None:
        yield
    else:
        with as_guest(session, caller.project_id):
            yield


def usable(session: Session, project_id: uuid.UUID, version_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Which of these versions of other organisations the project may use now."""
    with as_guest(session, project_id):
        seen = select(ExpertVersion, Expert).join(Expert, Expert.id == ExpertVersion.expert_id)
        rows = [(row[0], row[1]) for row in session.execute(seen.where(ExpertVersion.id.in_(version_ids)))]
        allowed = [(version, _permission(session, expert, version)) for version, expert in rows]
    use = PERMISSIONS.index("use")
    return {version.id for version, permission in allowed if PERMISSIONS.index(permission) >= use}


def managing_grants(session: Session, caller: Caller, expert: Expert) -> list[uuid.UUID]:
    """The grants by which the caller manages an expert of another organisation: read as a guest, so those that hold."""
    with as_guest(session, caller.project_id):
        of_expert = select(ExpertGrant.id).where(ExpertGrant.expert_id == expert.id)
        return list(session.scalars(of_expert.where(ExpertGrant.permission == "manage")))


def organization_name(session: Session, caller: Caller) -> str:
    """The name of the caller's own organisation."""
    return session.scalars(select(Organization.name).where(Organization.id == caller.org_id)).one()


def _is_own(caller: Caller, name: str) -> bool:
    return name.startswith(f"{caller.project}.") and OF_ORGANIZATION.fullmatch(name) is None


def _find(session: Session, caller: Caller, name: str) -> Found:
    match = OF_ORGANIZATION.fullmatch(name)
    if match is not None and match["organization"] != organization_name(session, caller):
        with as_guest(session, caller.project_id):
            found = _shared(session, match["organization"], match["name"], name)
    else:
        found = _of_organization(session, caller, match["name"] if match else name, name)
    if found is None:
        raise _not_there(session, caller, name)
    return found


def _not_there(session: Session, caller: Caller, name: str) -> NotFoundError:
    return missing.model(session, caller.project_id, name) if "@" in name else missing.expert(session, caller, name)


def _of_organization(session: Session, caller: Caller, local: str, name: str) -> Found | None:
    """An expert of the caller's own organisation, of whichever project."""
    project = session.scalar(
        select(Project).where(Project.org_id == caller.org_id, Project.name == local.partition(".")[0])
    )
    found = None if project is None else _in_project(session, project, local)
    if found is None or project is None:
        return None
    expert, record = found
    if project.id == caller.project_id:
        return Found(expert, record, "manage", None, name)
    return None if expert.visibility == "private" else Found(expert, record, WITHIN_ORGANIZATION, None, name)


def _shared(session: Session, organization: str, local: str, name: str) -> Found | None:
    """An expert of another organisation. To be asked as a guest, who finds only what is shared."""
    of_name = (Organization.name == organization, Project.name == local.partition(".")[0])
    joined = select(Project).join(Organization, Organization.id == Project.org_id)
    project = session.scalar(joined.where(*of_name))
    found = None if project is None else _in_project(session, project, local)
    if found is None:
        return None
    expert, record = found
    permission = _permission(session, expert, None if record is None else record.version)
    return Found(
        expert, None if record is None else replace(record, organization=organization), permission, organization, name
    )


def _in_project(session: Session, project: Project, local: str) -> tuple[Expert, VersionRecord | None] | None:
    if "@" in local:
        record = versions.find_version(session, project.id, local)
        return None if record is None or record.version.deleted_at is not None else (record.expert, record)
    match = EXPERT_NAME.fullmatch(local)
    expert = None if match is None else versions.named_expert(session, project.id, match["expert"])
    return None if expert is None or expert.deleted_at is not None else (expert, None)


def _permission(session: Session, expert: Expert, version: ExpertVersion | None) -> Permission:
    """What a guest that sees this may do with it: by its visibility, and by grants of the expert or the version."""
    of_expert = select(ExpertGrant.permission).where(ExpertGrant.expert_id == expert.id)
    if version is not None:
        of_expert = of_expert.where(or_(ExpertGrant.version_id.is_(None), ExpertGrant.version_id == version.id))
    granted = [*session.scalars(of_expert), BY_VISIBILITY.get(expert.visibility, "view")]
    return max(granted, key=PERMISSIONS.index)
