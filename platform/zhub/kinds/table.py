"""All kinds of jobs. A new kind needs an entry here and, if workers run it, a runner."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from zhub.datasets import files, token_counts
from zhub.errors import ConflictError
from zhub.evaluation import evaluations
from zhub.kinds.kind import Kind, success
from zhub.manifest import Manifest
from zhub.models import Job
from zhub.queue.attempts import Released
from zhub.queue.jobs import KindNames
from zhub.registry import base_models, classification, deletion, exports
from zhub.registry.publish import publish
from zhub.states import LIGHT, TORCH


def _publish(session: Session, job_id: uuid.UUID, fence: int, result: Mapping[str, Any]) -> None:
    manifest = Manifest.model_validate(result["manifest"])
    publish(session, job_id, fence, manifest, result["key_prefix"], result["trained_tokens"])


def _refuse_redrive(_session: Session, _job: Job) -> None:
    raise ConflictError("A gate is not decided again. Ask for another promotion.")


def _refuse_unknown(_session: Session, job: Job) -> None:
    raise ConflictError(f"This release does not know jobs of the kind '{job.kind}'. Redrive it with the one that does.")


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "validate",
            LIGHT,
            succeed=success(files.finish_validation),
            failed=files.fail_validation,
            redriven=files.restart_validation,
        ),
        Kind("count_tokens", LIGHT, succeed=success(token_counts.finish)),
        Kind(classification.KIND, LIGHT, succeed=success(classification.finish)),
        Kind(
            "decompose",
            TORCH,
            succeed=success(base_models.finish_decomposition),
            failed=base_models.fail_decomposition,
            redriven=base_models.restart_decomposition,
        ),
        Kind("train", TORCH, resumable=True, succeed=_publish, check_redrive=deletion.check_redrive),
        Kind("import", TORCH, succeed=_publish, check_redrive=deletion.check_redrive),
        Kind("export", TORCH, succeed=success(exports.finish), check_redrive=exports.check_redrive),
        Kind("evaluate", TORCH, succeed=success(evaluations.finish), check_redrive=evaluations.check_redrive),
        Kind("gate", None, check_redrive=_refuse_redrive),
    )
}


def kind_of(job: Job | Released) -> Kind:
    """The kind of a job. One that only another release knows has no effects, and is not redriven by this one.

    Releases run side by side during an upgrade, and after a rollback; the jobs of a newer one must not stop the leader.
    """
    return KINDS.get(job.kind) or Kind(job.kind, None, check_redrive=_refuse_unknown)


def of_pool(pool: str) -> list[str]:
    """The names of the kinds that a pool's workers run."""
    return [kind.name for kind in KINDS.values() if kind.pool == pool]


def names() -> KindNames:
    """The kinds that SQL statements of queue and admission treat differently."""
    return KindNames(
        light=[kind.name for kind in KINDS.values() if kind.pool == LIGHT],
        resumable=[kind.name for kind in KINDS.values() if kind.resumable],
        without_worker=[kind.name for kind in KINDS.values() if kind.pool is None],
    )
