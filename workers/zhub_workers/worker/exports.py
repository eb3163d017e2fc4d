"""Exports: the files of a version become a folder that other software loads, or one file for another zhub.

What is not exact is measured here, and told in the folder's README and in the job's result.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zhub.errors import BasisMismatchError
from zhub.expert_file import PROBE_FILE, SUFFIX, Contract, ContractBase, pack
from zhub.manifest import MANIFEST_FILE, Z_FILE, Manifest, file_entry
from zhub.specs import BaseModelSource, BasisReference, ExportSpec
from zhub.storage.object_store import ObjectStore, fetch, put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile, read_expert, write_expert
from zhub_workers.model.basis import load_basis
from zhub_workers.model.changes import Change, read_change
from zhub_workers.model.lora_export import LoraExport, as_lora, write_lora
from zhub_workers.model.matrix_changes import MatrixChanges
from zhub_workers.model.merged_files import write_merged
from zhub_workers.model.model_cache import base_directory, fetch_basis
from zhub_workers.model.probe import distance
from zhub_workers.model.probe_file import write_probe
from zhub_workers.model.psoft_export import write_psoft
from zhub_workers.model.weights import open_base
from zhub_workers.worker.cards import write_card

Load = Callable[[BaseModelSource, BasisReference], AdaptedModel]
"""The base model on its basis, in memory."""


@dataclass(frozen=True)
class _Version:
    """What is exported: as it is asked for, its manifest, and the directory of its files."""

    spec: ExportSpec
    manifest: Manifest
    directory: Path

    @property
    def z(self) -> Path:
        return self.directory / Z_FILE

    @property
    def z_sha256(self) -> str:
        return self.manifest.file(Z_FILE).sha256


def run_export(
    spec: ExportSpec, load: Load, attempt: Attempt, context: AttemptContext, store: ObjectStore
) -> dict[str, Any]:
    """Store the export's files, and return what the job's row needs.

    Raises:
        UnsupportedAdapterError, UnsupportedModelError: the version has no such form; says which it has.
        DigestMismatchError, ArtifactError, BasisMismatchError: its files are not what they were.
    """
    with tempfile.TemporaryDirectory(dir=attempt.cache_dir) as root:
        sent, made = Path(root) / "version", Path(root) / "made"
        for directory in (sent, made):
            directory.mkdir()
        for file in spec.files:
            fetch(store, file.key, sent / file.name, sha256=file.sha256)
        version = _Version(spec, Manifest.model_validate_json((sent / MANIFEST_FILE).read_bytes()), sent)
        context.raise_if_stopped()
        if spec.format == "merged":
            facts = _merge(version, made, attempt.cache_dir, context, store)
        else:
            facts = _Following(version, load(spec.base, spec.basis)).write(made)
        if spec.format != "zhub":
            write_card(made, spec, version.manifest, facts)
        context.emit("info", f"{spec.name} is written as {spec.format}.", {"type": "export", **facts})
        files = []
        for path in sorted(path for path in made.rglob("*") if path.is_file()):
            context.raise_if_stopped()
            name = path.relative_to(made).as_posix()
            put_path(store, f"{attempt.key_prefix}/{name}", path)
            files.append(file_entry(path).model_copy(update={"name": name}).model_dump())
    return {"key_prefix": attempt.key_prefix, "files": files, "facts": facts}


def _merge(
    version: _Version, made: Path, cache_dir: Path, context: AttemptContext, store: ObjectStore
) -> dict[str, Any]:
    """Fold the expert into the base's files, one parameter at a time: no model is loaded."""
    spec = version.spec
    source = base_directory(spec.base, store, cache_dir)
    _, weights = open_base(source, name=spec.base.name)
    if weights.fingerprint != spec.basis.weights_fingerprint:
        raise BasisMismatchError(
            f"The weights of base model '{spec.base.name}' are not those that were decomposed.",
            expected=spec.basis.weights_fingerprint,
            actual=weights.fingerprint,
        )
    del weights
    basis = load_basis(fetch_basis(spec.basis, store, cache_dir), spec.basis.basis_fingerprint)
    expert = read_expert(version.z, sha256=version.z_sha256, basis=basis)

    def follow(_done: int, _total: int) -> None:
        context.progressed()
        context.raise_if_stopped()

    error = write_merged(source, made, MatrixChanges(expert, basis), on_parameter=follow)
    return {"rounding_error": asdict(error)}


class _Following:
    """Exports of an expert that the base in memory follows, so that what is written can be compared with it."""

    def __init__(self, version: _Version, adapted: AdaptedModel) -> None:
        self._version, self._spec, self._adapted = version, version.spec, adapted
        self._expert: ExpertFile = read_expert(version.z, sha256=version.z_sha256, basis=adapted.basis)

    def write(self, made: Path) -> dict[str, Any]:
        match self._spec.format:
            case "lora":
                return self._lora(made)
            case "psoft":
                return self._psoft(made)
            case _:
                return self._one_file(made)

    def _lora(self, made: Path) -> dict[str, Any]:
        lora = as_lora(self._expert, self._adapted, self._spec.rank)
        write_lora(made, lora, self._adapted, self._spec.base)
        away = distance(self._adapted, self._change(), self._change_of(lora))
        return {"rank": lora.rank, "dora": lora.dora, "error": {"weights": lora.error, **asdict(away)}}

    def _psoft(self, made: Path) -> dict[str, Any]:
        folders = write_psoft(made, self._expert, self._adapted, self._spec.base)
        write_probe(made / PROBE_FILE, self._adapted, self._change())
        return {"adapters": folders}

    def _one_file(self, made: Path) -> dict[str, Any]:
        write_probe(self._version.directory / PROBE_FILE, self._adapted, self._change())
        beside = [file_entry(self._version.directory / name) for name in (MANIFEST_FILE, PROBE_FILE)]
        contract = Contract(
            name=self._spec.name,
            digest=self._spec.digest,
            kind=self._expert.kind,
            base=ContractBase(
                name=self._spec.base.name,
                hub_id=self._spec.base.hub_id,
                hub_revision=self._spec.base.hub_revision,
                weights_fingerprint=self._spec.basis.weights_fingerprint,
                basis_fingerprint=self._spec.basis.basis_fingerprint,
            ),
            shapes={name: list(tensor.shape) for name, tensor in sorted(self._expert.tensors.items())},
            files=[beside[0], *self._version.manifest.files, beside[1]],
        )
        pack(made / f"{self._spec.name}{SUFFIX}", contract, self._version.directory)
        return {"tensors": len(contract.shapes)}

    def _change(self) -> Change:
        return read_change(self._version.z, sha256=self._version.z_sha256, adapted=self._adapted)

    def _change_of(self, lora: LoraExport) -> Change:
        """What the base follows with the LoRA, read as an expert of its own."""
        path = self._version.directory / "lora.safetensors"
        expert = ExpertFile("dora" if lora.dora else "lora", lora.tensors, {"rank": lora.rank, "alpha": lora.alpha})
        fingerprint = self._adapted.basis.fingerprint
        write_expert(path, expert, basis_fingerprint=fingerprint, base_model=self._spec.base.name)
        return read_change(path, sha256=file_entry(path).sha256, adapted=self._adapted)
