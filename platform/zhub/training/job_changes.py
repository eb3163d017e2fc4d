"""What may be changed of a fine-tuning job after it was made: what people say of it, and whether lists show it.

Functions take a Session and never commit.
"""

from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import ColumnElement, func, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import ConflictError
from zhub.models import Job
from zhub.queue import job_events
from zhub.tenancy.metadata import Metadata


class JobChange(Schema):
    """A change of a job: only the fields that are given. ``metadata`` replaces all pairs that there are."""

    model_config = ConfigDict(extra="forbid")
    description: Annotated[str, Field(max_length=2000)] | None = None
    metadata: Metadata | None = None
    archived: bool = False
    """Whether lists leave the job out unless they are asked for it. Only a job that has ended can be archived."""


def change_job(session: Session, job: Job, change: JobChange, *, by: str) -> None:
    """Change a job, and add an event that says what was changed ``by`` whom.

    Raises:
        ConflictError: the job has not ended, or is queued again, and shall be archived.
    """
    given = change.model_fields_set
    values: dict[str, Any] = {}
    guards: list[ColumnElement[bool]] = [Job.id == job.id]
    if "description" in given:
        values["description"] = change.description or None
    if "metadata" in given:
        metadata = type_coerce(change.metadata or {}, JSONB)
        values["request"] = Job.request.op("||")(func.jsonb_build_object("metadata", metadata))
    if change.archived:
        values["archived_at"] = func.coalesce(Job.archived_at, func.now())
        guards += [Job.state.in_(states.TERMINAL), Job.desired != "redrive"]
    elif "archived" in given:
        values["archived_at"] = None
    if not values:
        return
    if session.scalar(update(Job).where(*guards).values(values).returning(Job.id)) is None:
        raise ConflictError("The job has not ended: only a job that has ended can be archived. Cancel it, or wait.")
    session.refresh(job)
    what = ", ".join(sorted(given))
    job_events.add(session, job.org_id, job.id, f"Changed: {what}.", data={"type": "change", "fields": what, "by": by})
