"""What is answered for the name of a model or an expert that is not there: the one that may have been meant.

It looks only at what the caller may use anyway: its own project and the base models that it sees.
"""

import uuid

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from zhub.errors import NotFoundError
from zhub.models import Alias, BaseModel, Expert, ExpertVersion, Project, Release, ReleaseVersion
from zhub.registry.names import AUTO, VERSION_NAME
from zhub.suggestions import did_you_mean
from zhub.tenancy.keys import Caller

MAX_COMPARED = 1000  # names of each sort


def model(session: Session, project_id: uuid.UUID, name: str) -> NotFoundError:
    """The error for a name that is no version, checkpoint, release, alias or base model of the project."""
    hint = "GET /v1/models lists the experts and base models that this key may use."
    near = did_you_mean(name, _models(session, project_id, name)).lstrip()
    return NotFoundError("model", name, f"{near} {hint}".lstrip())


def expert(session: Session, caller: Caller, name: str) -> NotFoundError:
    """The error for a name that is no expert of the caller's project."""
    names = session.scalars(
        select(Expert.name)
        .where(Expert.project_id == caller.project_id, Expert.deleted_at.is_(None))
        .order_by(Expert.id.desc())
        .limit(MAX_COMPARED)
    )
    near = did_you_mean(name, [f"{caller.project}.{known}" for known in names]).lstrip()
    return NotFoundError("expert", name, f"{near} GET /v1/experts lists the versions of all experts.".lstrip())


def release(session: Session, caller: Caller, name: str) -> NotFoundError:
    """The error for a name that is no release of the caller's project."""
    names = session.scalars(select(Release.name).where(Release.project_id == caller.project_id).limit(MAX_COMPARED))
    near = did_you_mean(name, [f"{caller.project}.{known}" for known in names]).lstrip()
    return NotFoundError("release", name, f"{near} GET /v1/releases lists the versions of all releases.".lstrip())


def _models(session: Session, project_id: uuid.UUID, name: str) -> list[str]:
    """Names of models that ``name`` is compared with; of the versions those of the same number, and each newest."""
    project = session.get_one(Project, project_id)
    match = VERSION_NAME.fullmatch(name)
    number = int(match["number"]) if match else 1
    of_project = (Expert.project_id == project_id, Expert.deleted_at.is_(None))
    versions = (
        select(Expert.name, ExpertVersion.version)
        .join(ExpertVersion, ExpertVersion.expert_id == Expert.id)
        .where(*of_project, ExpertVersion.deleted_at.is_(None))
        .where(or_(ExpertVersion.version == number, ExpertVersion.version == Expert.last_version))
    )
    aliases = (
        select(Expert.name, Alias.name)
        .join(Alias, Alias.expert_id == Expert.id)
        .where(*of_project, Alias.version_id.is_not(None))
    )
    of_release = (Release.project_id == project_id, ReleaseVersion.deleted_at.is_(None))
    release_versions = (
        select(Release.name, ReleaseVersion.version)
        .join(ReleaseVersion, ReleaseVersion.release_id == Release.id)
        .where(*of_release)
        .where(or_(ReleaseVersion.version == number, ReleaseVersion.version == Release.last_version))
    )
    release_aliases = (
        select(Release.name, Alias.name)
        .join(Alias, Alias.release_id == Release.id)
        .where(Release.project_id == project_id, Alias.release_version_id.is_not(None))
    )
    visible = or_(~BaseModel.private, BaseModel.owner_org_id == project.org_id)
    bases = session.scalars(select(BaseModel.name).where(visible).limit(MAX_COMPARED))
    return [
        AUTO,
        *bases,
        *(
            f"{project.name}.{of}@{alias}"
            for listed in (aliases, release_aliases)
            for of, alias in session.execute(listed.limit(MAX_COMPARED))
        ),
        *(
            f"{project.name}.{of}@v{version}"
            for listed in (versions, release_versions)
            for of, version in session.execute(listed.limit(MAX_COMPARED))
        ),
    ]
