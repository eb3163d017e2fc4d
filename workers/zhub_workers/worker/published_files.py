"""The files of a version that a training has made."""

from pathlib import Path

import zhub
from zhub.manifest import ANSWERS_FILE, MANIFEST_FILE, ROUTING_FILE, Z_FILE, Manifest, file_entry
from zhub.specs import TrainSpec
from zhub_workers.attempts.attempt import Attempt
from zhub_workers.evaluation.answer_pairs import write_pairs
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import write_routing
from zhub_workers.model.changes import read_change
from zhub_workers.model.strength import write_strengths
from zhub_workers.training.train import TrainResult
from zhub_workers.worker.checkpoints import parameter_count, write_adapter


def write_version(
    directory: Path, model: AdaptedModel, spec: TrainSpec, attempt: Attempt, result: TrainResult, hardware: str
) -> Manifest:
    """Write the files of the version that a training has made, and return its manifest, which lists them."""
    write_adapter(directory / Z_FILE, spec, result.artifact)
    assert result.centroid is not None  # only training that was stopped has none
    write_routing(directory / ROUTING_FILE, result.centroid, basis_fingerprint=spec.basis.basis_fingerprint)
    write_pairs(directory, result.answers)
    z = directory / Z_FILE
    strengths = write_strengths(directory, read_change(z, sha256=file_entry(z).sha256, adapted=model), model)
    manifest = Manifest(
        base_model=spec.base.name,
        base_source=f"{spec.base.hub_id}@{spec.base.hub_revision}" if spec.base.hub_id else "files",
        weights_fingerprint=spec.basis.weights_fingerprint,
        basis_fingerprint=spec.basis.basis_fingerprint,
        dataset_digest=spec.training_file.sha256,
        validation_digest=spec.validation_file.sha256 if spec.validation_file else None,
        job_id=str(attempt.key.job_id),
        fence=attempt.key.fence,
        recipe=spec.recipe,
        hyperparameters=spec.hyperparameters.model_dump(mode="json"),
        grader=spec.grader.model_dump(mode="json") if spec.grader else None,
        seed=spec.seed,
        code_version=zhub.__version__,
        hardware=hardware,
        best_step=result.best_step,
        steps=result.steps,
        parameters=parameter_count(spec.hyperparameters, result.artifact),
        evaluations=[*filter(None, (result.validation, result.test)), *result.general],
        parent_digest=result.parent_digest,
        mixture=result.mixture,
        files=[file_entry(directory / name) for name in (Z_FILE, ROUTING_FILE, ANSWERS_FILE, *strengths)],
    )
    (directory / MANIFEST_FILE).write_bytes(manifest.canonical())
    return manifest
