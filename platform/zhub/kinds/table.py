"""The kinds of jobs there are. To add one, add its entry, and its runner where workers run it."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from zhub.datasets import files
from zhub.errors import ConflictError
from zhub.evaluation import evaluations
from zhub.kinds.kind import Kind, success
from zhub.manifest import Manifest
from zhub.models import Job
from zhub.queue.attempts import Released, Succeeded
from zhub.queue.jobs import KindNames
from zhub.registry import base_models
from zhub.registry.publish import publish
from zhub.states import LIGHT, TORCH


def _write_validation(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    assert job.dataset_version_id is not None
    files.finish_validation(session, job.dataset_version_id, result["validation"])


def _fail_validation(session: Session, job: Released) -> None:
    assert job.dataset_version_id is not None
    files.fail_validation(session, job.dataset_version_id, job.reason)


def _restart_validation(session: Session, job: Job) -> None:
    assert job.dataset_version_id is not None
    files.restart_validation(session, job.dataset_version_id)


def _write_basis(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    assert job.base_model_id is not None
    base_models.finish_decomposition(session, job.base_model_id, result)


def _fail_decomposition(session: Session, job: Released) -> None:
    assert job.base_model_id is not None
    base_models.fail_decomposition(session, job.base_model_id, job.reason)


def _restart_decomposition(session: Session, job: Job) -> None:
    assert job.base_model_id is not None
    base_models.restart_decomposition(session, job.base_model_id)


def _write_evaluation(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    evaluations.finish(session, job.org_id, job.id, result)


def _publish(session: Session, job_id: uuid.UUID, fence: int, result: Mapping[str, Any]) -> None:
    manifest = Manifest.model_validate(result["manifest"])
    publish(session, job_id, fence, manifest, result["key_prefix"], result["trained_tokens"])


def _refuse_redrive(_session: Session, _job: Job) -> None:
    raise ConflictError("A gate is not decided again. Ask for another promotion.")


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "validate",
            LIGHT,
            succeed=success(_write_validation),
            failed=_fail_validation,
            redriven=_restart_validation,
        ),
        Kind(
            "decompose",
            TORCH,
            succeed=success(_write_basis),
            failed=_fail_decomposition,
            redriven=_restart_decomposition,
        ),
        Kind("train", TORCH, resumable=True, succeed=_publish),
        Kind("evaluate", TORCH, succeed=success(_write_evaluation), check_redrive=evaluations.check_redrive),
        Kind("gate", None, check_redrive=_refuse_redrive),
    )
}


def of_pool(pool: str) -> list[str]:
    """The names of the kinds that a pool's workers run."""
    return [kind.name for kind in KINDS.values() if kind.pool == pool]


def names() -> KindNames:
    """What the statements of queue and admission must tell apart."""
    return KindNames(
        light=[kind.name for kind in KINDS.values() if kind.pool == LIGHT],
        resumable=[kind.name for kind in KINDS.values() if kind.resumable],
        without_worker=[kind.name for kind in KINDS.values() if kind.pool is None],
    )
