"""Trainings that were requested before their base model was decomposed, and wait for it."""

import uuid
from collections.abc import Sequence

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.errors import InvalidRequestError
from zhub.models import BaseModel, Job
from zhub.queue import job_events
from zhub.registry import base_models
from zhub.registry.limitations import check_trainable_base
from zhub.specs import TrainSpec
from zhub.training.packing import pack_key
from zhub.webhooks import outbox

MAX_TRAININGS = 100  # jobs in one pass of the leader


def follow_decompositions(session: Session) -> int:
    """Give each waiting training the basis of its base once there is one; cancel it if there will be none.

    Returns how many. The leader calls this, before ``release_dependents`` queues those that wait for nothing else.
    """
    ids = _due(session)
    jobs = session.scalars(
        select(Job).where(Job.id.in_(ids), Job.state == states.WAITING).order_by(Job.id).with_for_update()
    ).all()
    bases = {
        base.id: base
        for base in session.scalars(select(BaseModel).where(BaseModel.id.in_({job.base_model_id for job in jobs})))
    }
    for job in jobs:
        assert job.base_model_id is not None
        base = bases[job.base_model_id]
        if base.status != "ready":
            _cancel(
                session,
                job,
                f"The base model '{base.name}', which it waited for, could not be decomposed: {base.error}",
            )
        elif refusal := _refusal(base):
            _cancel(session, job, refusal)
        else:
            _give_basis(session, job, base)
    return len(jobs)


def _due(session: Session) -> Sequence[uuid.UUID]:
    """The trainings that wait for a base whose decomposition has ended."""
    # Plan: ix_jobs_waiting, then the few base models. Not materialised, all of jobs might be read in the order of id.
    return session.scalars(
        text(
            """
            WITH waiting AS MATERIALIZED (
                SELECT j.id, j.base_model_id FROM jobs j WHERE j.state = 'waiting' AND j.spec->'basis' = 'null'
            )
            SELECT waiting.id FROM waiting JOIN base_models b ON b.id = waiting.base_model_id
             WHERE b.status IN ('ready', 'error') ORDER BY waiting.id LIMIT :limit
            """
        ),
        {"limit": MAX_TRAININGS},
    ).all()


def _give_basis(session: Session, job: Job, base: BaseModel) -> None:
    basis = base_models.require_ready(base).model_dump(mode="json")
    spec = TrainSpec.model_validate(job.spec | {"basis": basis})
    job.spec, job.pack_key = spec.model_dump(mode="json"), pack_key(spec)
    session.flush()
    job_events.add(session, job.org_id, job.id, f"The base model '{base.name}' is decomposed.")


def _refusal(base: BaseModel) -> str | None:
    """Why no expert can be trained on a base that is ready; None where one can."""
    try:
        check_trainable_base(base.name, base.details)
    except InvalidRequestError as exc:
        return str(exc)
    return None


def _cancel(session: Session, job: Job, message: str) -> None:
    session.execute(
        update(Job)
        .where(Job.id == job.id, Job.state == states.WAITING)
        .values(
            state=states.CANCELLED,
            finished_at=func.now(),
            error={"code": "base_model_failed", "param": "model", "message": message},
        )
    )
    job_events.add(session, job.org_id, job.id, message, level="error")
    outbox.announce_job(session, job.id)
