"""Gates without a scheduler, and trainings without a worker."""

import uuid
from collections.abc import Callable
from typing import Any

from claims import claim_one
from sqlalchemy import Engine, select, text
from suites import manifest_of

from zhub import scheduler
from zhub.database.sessions import system_session
from zhub.kinds import table
from zhub.models import Job
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes
from zhub.registry.publish import publish

Ask = Callable[..., Any]


def advance(engine: Engine) -> None:
    while scheduler.advance_gate(engine):
        pass
    with system_session(engine) as session:
        apply_requested_changes(session)
        release_dependents(session, table.names())


def z(sha256: str) -> dict[str, Any]:
    """A manifest whose z is another."""
    return {"files": [{"name": "z.safetensors", "size_bytes": 1, "sha256": sha256 * 32}]}


def points_to(ask: Ask, expert: str = "summer", alias: str = "prod") -> str:
    return str(ask("get", f"/experts/main.{expert}/aliases/{alias}")["version"])


def clusters_of_evaluations(engine: Engine) -> set[str]:
    with system_session(engine) as session:
        return set(session.scalars(select(Job.cluster).where(Job.kind == "evaluate")))


def publish_job(engine: Engine, job_id: str, sha256: str, cluster: str = "default") -> None:
    """Do what a worker does with a training."""
    with system_session(engine) as session:
        found = uuid.UUID(job_id.removeprefix("ftjob-"))
        session.execute(text("UPDATE jobs SET state = 'admitted', admitted_at = now() WHERE id = :id"), {"id": found})
        claim = claim_one(session, "train", cluster=cluster)
        assert claim is not None and claim.job_id == found
        publish(session, found, claim.fence, manifest_of(found, **z(sha256)), "k", 7)
