"""Publication: the version of a finished training, in the one transaction that ends its job."""

import math
import uuid
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.errors import ConflictError
from zhub.ids import new_id, public_id
from zhub.manifest import Manifest
from zhub.models import Expert, ExpertVersion
from zhub.queue import attempts, job_events
from zhub.registry import cards, namespace
from zhub.registry.versions import records
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name, name_of_file, name_of_suffix
from zhub.webhooks import endpoints, outbox

ARCHIVED = (Expert.archived_at.is_not(None), Expert.deleted_at.is_(None))


def expert_name(suffix: str | None, filename: str) -> str:
    """The name of the expert that a training's ``suffix`` gives, or else its file without the ending.

    Raises:
        InvalidRequestError: it cannot be a name.
    """
    if suffix is not None:
        return name_of_suffix(suffix, "expert", param="suffix")
    return check_name(name_of_file(filename, default="expert"), "expert", param="suffix")


def check_trainable(session: Session, project_id: uuid.UUID, name: str) -> None:
    """Refuse the name of an expert that no training may go into. A deleted one begins again, a new one is created.

    Raises:
        ConflictError: the expert is archived, or the name was that of another one, or is a release's.
    """
    namespace.check_free_of_releases(session, project_id, name)
    of_project = select(Expert).where(Expert.project_id == project_id)
    renamed = session.scalar(of_project.where(Expert.former_names.contains([name])))
    if renamed is not None:
        raise ConflictError(
            f"The name '{name}' belongs to the expert '{renamed.name}', which had it before. Give the suffix "
            f"'{renamed.name}' to train that one, or another name."
        )
    if session.scalar(of_project.where(Expert.name == name, *ARCHIVED)) is not None:
        raise ConflictError(
            f"The expert '{name}' is archived. Unarchive it, or train another one by a suffix of its own."
        )


def get_or_create_expert(session: Session, caller: Caller, name: str) -> Expert:
    """The expert of this name in the caller's project, created if it is new; nobody deletes it meanwhile.

    A deleted one begins again, without what was said of it; its versions are numbered from the last one on.

    Raises:
        ConflictError: as ``check_trainable``.
    """
    of_name = (Expert.project_id == caller.project_id, Expert.name == name)
    if session.scalar(select(Expert.id).where(*of_name)) is None:
        namespace.claim_for_expert(session, caller.project_id, name)
    session.execute(
        insert(Expert)
        .values(id=new_id(), org_id=caller.org_id, project_id=caller.project_id, name=name, last_version=0)
        .on_conflict_do_nothing()
    )
    anew: dict[str, Any] = {"deleted_at": None, "archived_at": None, "description": None, "tags": {}}
    anew |= {"visibility": "private"}
    again = update(Expert).where(*of_name, Expert.deleted_at.is_not(None)).values(anew).returning(Expert.id)
    for expert_id in session.scalars(again):
        cards.clear(session, expert_id, caller.org_id)
    locked = select(Expert).where(*of_name).with_for_update(read=True, key_share=True)
    expert = session.scalar(locked.execution_options(populate_existing=True))
    # After the lock: whoever renames or deletes the expert has committed by now, or waits for us.
    check_trainable(session, caller.project_id, name)
    assert expert is not None
    return expert


def publish(
    session: Session, job_id: uuid.UUID, fence: int, manifest: Manifest, key_prefix: str, trained_tokens: int
) -> ExpertVersion:
    """Make the version of a finished attempt, in the one transaction that also ends the job.

    Jobs of the same expert serialise on the expert's counter row; numbers have no gaps.

    Raises:
        LeaseLostError: another attempt owns the job, or it was cancelled: nothing is written.
    """
    job = attempts.succeed(session, job_id, fence, trained_tokens=trained_tokens)
    number = session.scalars(
        update(Expert)
        .where(Expert.id == job.expert_id)
        .values(last_version=Expert.last_version + 1)
        .returning(Expert.last_version)
    ).one()
    version = ExpertVersion(
        org_id=job.org_id,
        expert_id=job.expert_id,
        base_model_id=job.base_model_id,
        version=number,
        job_id=job_id,
        fence=fence,
        digest=manifest.digest,
        manifest=manifest.model_dump(mode="json"),
        key_prefix=key_prefix,
        size_bytes=sum(file.size_bytes for file in manifest.files),
        score=next((e.expert.mean for e in manifest.evaluations if e.split == "test"), -math.inf),
    )
    session.add(version)
    session.flush()
    name = records(session, ExpertVersion.id == version.id)[0].name
    job_events.add(session, job.org_id, job_id, f"Published {name}.", data={"model": name, "digest": version.digest})
    announced = {"id": name, "job": public_job_id(version), "digest": version.digest}
    outbox.announce(session, job.org_id, job.project_id, endpoints.PUBLISHED, announced)
    return version


def public_job_id(version: ExpertVersion) -> str:
    """The public id of what made a version: a training, or an import."""
    return public_id("expert import" if version.manifest.get("origin") else "fine-tuning job", version.job_id)


def published(session: Session, job_id: uuid.UUID) -> ExpertVersion | None:
    """The version that a job published, or None: to be asked after a commit whose answer was lost."""
    return session.scalar(select(ExpertVersion).where(ExpertVersion.job_id == job_id))
