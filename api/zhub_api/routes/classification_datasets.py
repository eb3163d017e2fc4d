"""``/v1/classification_datasets``: rows of which a training makes a classifier, an expert that tells experts apart."""

from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from zhub.admission import limits
from zhub.database.sessions import tenant_session
from zhub.ids import parse_id, public_id
from zhub.kinds import table
from zhub.models import Job
from zhub.process.wakeup import SCHEDULER
from zhub.queue.statuses import status_of
from zhub.registry import classification
from zhub.registry.classification import ClassificationRequest
from zhub.specs import ClassificationSpec
from zhub_api.context import CallerDep, ContextDep
from zhub_api.rights import needs

router = APIRouter(prefix="/v1/classification_datasets")


@router.post("", dependencies=[needs("files:write", "jobs:write")])
def create_classification_dataset(
    caller: CallerDep, context: ContextDep, request: ClassificationRequest
) -> dict[str, Any]:
    """Make a file of prompts that the ``experts`` were trained on, each with the answer that stands for its expert.

    Follow ``status`` until it has succeeded; then train on ``file`` by the method ``supervised``. The rows are of those
    that the experts learned from, never held-out ones, nor any of a file with the purpose ``evals``. Prompts of the
    files ``others`` are for none of the experts: the base is to answer them.
    """
    with tenant_session(context.engine, caller.org_id) as session:
        limits.check_queue(session, caller.org_id, table.names())
        answer = _object(session, classification.create(session, caller, request))
    context.wakeup.notify(SCHEDULER)
    return answer


@router.get("/{dataset_id}", dependencies=[needs("jobs:read")])
def retrieve_classification_dataset(caller: CallerDep, context: ContextDep, dataset_id: str) -> dict[str, Any]:
    """A classification dataset, and the file that came of it."""
    with tenant_session(context.engine, caller.org_id) as session:
        job_id = parse_id("classification dataset", dataset_id)
        return _object(session, classification.get(session, caller.project_id, job_id))


def _object(session: Session, job: Job) -> dict[str, Any]:
    session.refresh(job)
    spec = ClassificationSpec.model_validate(job.spec)
    file_id = job.dataset_version_id
    made = classification.classified(session, [file_id]).get(file_id, []) if file_id else []
    rows = {known.label: known.rows for known in made}
    return {
        "id": public_id("classification dataset", job.id),
        "object": "classification_dataset",
        "created_at": int(job.created_at.timestamp()),
        "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
        "status": status_of(job),
        "error": job.error,
        "name": spec.name,
        "labels": [
            {"label": label.label, "model": label.model, "rows": rows.get(label.label)} for label in spec.labels
        ],
        "file": public_id("file", file_id) if file_id else None,
    }
