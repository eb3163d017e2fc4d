"""The checkpoints of a training job in the object store."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zhub.manifest import MANIFEST_FILE, Z_FILE, FileEntry, canonical_json, file_entry
from zhub.process import tracing
from zhub.recipes import FewShotHyperparameters, Hyperparameters
from zhub.specs import TrainSpec
from zhub.storage.keys import checkpoint_prefix
from zhub.storage.object_store import ObjectStore, fetch, put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.model.adapters import adapter_settings
from zhub_workers.model.artifact import ExpertFile, write_expert
from zhub_workers.training.state import TrainState, read_state, write_state

STATE_FILE = "state.safetensors"


class Checkpoints:
    """The checkpoints of one job in the object store: each a prefix of its own, whole once it has a manifest."""

    def __init__(self, spec: TrainSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore) -> None:
        self._spec = spec
        self._attempt = attempt
        self._context = context
        self._store = store
        self._spec_digest = hashlib.sha256(canonical_json(attempt.spec)).hexdigest()

    def newest(self, kept: Mapping[str, Any]) -> TrainState:
        """Fetch the state that a row names.

        Raises:
            ArtifactError: what lies there is not a state of this job.
        """
        with tempfile.TemporaryDirectory(dir=self._attempt.cache_dir) as directory:
            manifest = fetch(
                self._store,
                f"{kept['key_prefix']}/{MANIFEST_FILE}",
                Path(directory) / MANIFEST_FILE,
                sha256=kept["digest"],
            )
            files = {file["name"]: file["sha256"] for file in json.loads(manifest.read_bytes())["files"]}
            path = fetch(
                self._store,
                f"{kept['key_prefix']}/{STATE_FILE}",
                Path(directory) / STATE_FILE,
                sha256=files[STATE_FILE],
            )
            return read_state(path, spec_digest=self._spec_digest)

    def write(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Store a state and the expert as it is now, and report them; the manifest last."""
        attempt = self._attempt
        key = attempt.key
        prefix = checkpoint_prefix(attempt.org_id, key.job_id, state.step, key.fence)
        with (
            tracing.span("checkpoint", step=state.step),
            tempfile.TemporaryDirectory(dir=attempt.cache_dir) as name,
        ):
            directory = Path(name)
            write_adapter(directory / Z_FILE, self._spec, state.current)
            write_state(directory / STATE_FILE, state, spec_digest=self._spec_digest)
            files = [file_entry(directory / Z_FILE), file_entry(directory / STATE_FILE)]
            manifest = self._manifest(state.step, files)
            (directory / MANIFEST_FILE).write_bytes(manifest)
            for file in (Z_FILE, STATE_FILE, MANIFEST_FILE):
                put_path(self._store, f"{prefix}/{file}", directory / file)
        report = {
            "type": "checkpoint",
            "step": state.step,
            "key_prefix": prefix,
            "digest": hashlib.sha256(manifest).hexdigest(),
            "size_bytes": len(manifest) + sum(file.size_bytes for file in files),
            "z": files[0].model_dump(mode="json"),
            "metrics": dict(metrics),
        }
        self._context.emit("info", f"Checkpoint at step {state.step}.", report)

    def _manifest(self, step: int, files: Sequence[FileEntry]) -> bytes:
        spec = self._spec
        return canonical_json(
            {
                "schema_version": 1,
                "step": step,
                "job_id": str(self._attempt.key.job_id),
                "base_model": spec.base.name,
                "basis_fingerprint": spec.basis.basis_fingerprint,
                "spec_digest": self._spec_digest,
                "files": [file.model_dump(mode="json") for file in files],
            }
        )


def parameter_count(hyper: Hyperparameters, exported: Mapping[str, Tensor]) -> int:
    """How many numbers were trained: those of the artifact, but once where all matrices have the same ones."""
    if not isinstance(hyper, FewShotHyperparameters) and hyper.core_shared:
        return hyper.core_parameters
    return sum(tensor.numel() for tensor in exported.values())


def write_adapter(path: Path, spec: TrainSpec, exported: Mapping[str, Tensor]) -> None:
    """Write what the job's adapter exports."""
    hyper = spec.hyperparameters
    expert = ExpertFile(hyper.adapter, dict(exported), adapter_settings(hyper))
    write_expert(path, expert, basis_fingerprint=spec.basis.basis_fingerprint, base_model=spec.base.name)
