"""What a worker with torch does: decompose a base model, train an expert.

The base that was used last stays loaded, so that the next attempt on it begins at once.
"""

import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

import zhub
from zhub.manifest import MANIFEST_FILE, ROUTING_FILE, Z_FILE, Manifest, file_entry
from zhub.specs import DecomposeSpec, JobSpec, StoredFile, TrainSpec
from zhub.store import ObjectStore, fetch, open_store, put_path
from zhub_workers.artifact import write_routing, write_z
from zhub_workers.attempt import Attempt, AttemptContext, AttemptStoppedError
from zhub_workers.base_model import load_base_model, weights_fingerprint
from zhub_workers.basis import BASIS_FILE, decompose_base
from zhub_workers.model_cache import ModelCache, base_directory, basis_prefix
from zhub_workers.train import TrainResult, train


class TorchRunner:
    """Runs attempts on one device; holds the last base model that they used."""

    def __init__(self, device: str | None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._models = ModelCache(self.device, capacity=1)

    def __call__(self, attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
        """Run the attempt that ``attempt.spec`` describes, and return what its job's row needs."""
        spec = TypeAdapter[Any](JobSpec).validate_python(attempt.spec)
        store = open_store(attempt.store_url)
        if isinstance(spec, DecomposeSpec):
            return self._decompose(spec, attempt, context, store)
        return self._train(spec, attempt, context, store)

    def _decompose(
        self, spec: DecomposeSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore
    ) -> dict[str, Any]:
        context.emit("info", f"Loading base model {spec.base.name}.")
        base = load_base_model(base_directory(spec.base, store, attempt.cache_dir), device=self.device)
        weights = weights_fingerprint(base.model)
        prefix = basis_prefix(weights)
        directory = attempt.cache_dir / prefix
        # What an earlier attempt has stored is not computed again; decompose_base checks that it fits the weights.
        for key in store.keys(f"{prefix}/"):
            path = attempt.cache_dir / key
            if path.name != BASIS_FILE and not path.exists():
                _download(store, key, path)
                context.raise_if_stopped()
        stored = {key.rpartition("/")[2] for key in store.keys(f"{prefix}/")}

        def keep(done: int, total: int) -> None:
            path = directory / f"{done - 1:05d}.safetensors"
            if path.name not in stored:
                put_path(store, f"{prefix}/{path.name}", path)
            context.emit(
                "info", f"Decomposed matrix {done} of {total}.", {"type": "progress", "done": done, "total": total}
            )
            context.raise_if_stopped()

        fingerprint = decompose_base(base, directory, on_matrix=keep)
        # The index last: a basis that has one is complete.
        put_path(store, f"{prefix}/{BASIS_FILE}", directory / BASIS_FILE)
        model = base.model
        return {
            "weights_fingerprint": weights,
            "basis_fingerprint": fingerprint,
            "basis_key_prefix": prefix,
            "details": {
                "architecture": type(model).__name__,
                "parameters": sum(p.numel() for p in model.parameters()),
                "matrices": len(list(directory.glob("*.safetensors"))),
                "context_length": base.context_length,
                "vocabulary": len(base.tokenizer),
            },
        }

    def _train(self, spec: TrainSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore) -> dict[str, Any]:
        adapted = self._models.get(spec.base, spec.basis, store, attempt.cache_dir)
        training = _dataset(spec.training_file, store, attempt.cache_dir)
        validation = _dataset(spec.validation_file, store, attempt.cache_dir) if spec.validation_file else None
        result = train(
            spec,
            adapted=adapted,
            training_path=training,
            validation_path=validation,
            on_event=context.emit,
            should_stop=context.should_stop,
        )
        if result.stopped:
            raise AttemptStoppedError
        with tempfile.TemporaryDirectory(dir=attempt.cache_dir) as directory:
            manifest = _write_version(Path(directory), spec, attempt, result, self.device)
            # The manifest last: a prefix that has one is whole.
            for name in (*(file.name for file in manifest.files), MANIFEST_FILE):
                put_path(store, f"{attempt.key_prefix}/{name}", Path(directory) / name)
        return {
            "manifest": manifest.model_dump(mode="json"),
            "key_prefix": attempt.key_prefix,
            "trained_tokens": result.trained_tokens,
        }


def _write_version(
    directory: Path, spec: TrainSpec, attempt: Attempt, result: TrainResult, device: torch.device
) -> Manifest:
    write_z(directory / Z_FILE, result.z, basis_fingerprint=spec.basis.basis_fingerprint, base_model=spec.base.name)
    assert result.centroid is not None  # only training that was stopped has none
    write_routing(directory / ROUTING_FILE, result.centroid, basis_fingerprint=spec.basis.basis_fingerprint)
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
        hardware=torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}",
        best_step=result.best_step,
        steps=result.steps,
        parameters=sum(z.numel() for z in result.z.values()),
        evaluations=[evaluation for evaluation in (result.validation, result.test) if evaluation is not None],
        parent_digest=spec.parent_digest,
        files=[file_entry(directory / Z_FILE), file_entry(directory / ROUTING_FILE)],
    )
    (directory / MANIFEST_FILE).write_bytes(manifest.canonical())
    return manifest


def _dataset(file: StoredFile, store: ObjectStore, cache_dir: Path) -> Path:
    return fetch(store, file.key, cache_dir / "datasets" / file.sha256, sha256=file.sha256)


def _download(store: ObjectStore, key: str, path: Path) -> None:
    """Bring an object whose digest is not known yet; what comes of it is checked by its reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.download")
    with temporary.open("wb") as file:
        for piece in store.open(key):
            file.write(piece)
    shutil.move(temporary, path)
