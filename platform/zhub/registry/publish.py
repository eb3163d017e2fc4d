"""Publication: the version of a finished training, in the one transaction that ends its job."""

import uuid

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.ids import new_id, public_id
from zhub.manifest import Manifest
from zhub.models import Expert, ExpertVersion
from zhub.queue import attempts, job_events
from zhub.registry.versions import records
from zhub.tenancy.keys import Caller
from zhub.tenancy.names import check_name, name_of_file, name_of_suffix
from zhub.webhooks import endpoints, outbox


def expert_name(suffix: str | None, filename: str) -> str:
    """The name of the expert that a training's ``suffix`` gives, or else its file without the ending.

    Raises:
        InvalidRequestError: it cannot be a name.
    """
    if suffix is not None:
        return name_of_suffix(suffix, "expert", param="suffix")
    return check_name(name_of_file(filename, default="expert"), "expert", param="suffix")


def get_or_create_expert(session: Session, caller: Caller, name: str) -> Expert:
    """The expert of this name in the caller's project, created if it is new."""
    session.execute(
        insert(Expert)
        .values(id=new_id(), org_id=caller.org_id, project_id=caller.project_id, name=name, last_version=0)
        .on_conflict_do_nothing()
    )
    return session.scalars(select(Expert).where(Expert.project_id == caller.project_id, Expert.name == name)).one()


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
    )
    session.add(version)
    session.flush()
    name = records(session, ExpertVersion.id == version.id)[0].name
    job_events.add(session, job.org_id, job_id, f"Published {name}.", data={"model": name, "digest": version.digest})
    announced = {"id": name, "job": public_id("fine-tuning job", job_id), "digest": version.digest}
    outbox.announce(session, job.org_id, job.project_id, endpoints.PUBLISHED, announced)
    return version


def published(session: Session, job_id: uuid.UUID) -> ExpertVersion | None:
    """The version that a job published, or None: to be asked after a commit whose answer was lost."""
    return session.scalar(select(ExpertVersion).where(ExpertVersion.job_id == job_id))
