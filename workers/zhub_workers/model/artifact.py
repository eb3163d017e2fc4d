"""The files of an expert version: ``z.safetensors`` (of another kind than SVF: its parameters) and its routing.

Both hold tensors and one metadata key, ``zhub``, with canonical JSON: the bytes are the same whenever and wherever the
same expert is written, so its SHA-256 can name it. Reading trusts nothing: digest, format, names, shapes, values.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zhub.errors import ArtifactError, BasisMismatchError, DigestMismatchError
from zhub.manifest import canonical_json
from zhub.recipes import AdapterKind
from zhub_workers.model.basis import Basis, check_z, replace_file
from zhub_workers.model.routing import Centroid

Z_FORMAT = "zhub-z-1"
FORMATS: Mapping[AdapterKind, str] = {
    "svf": Z_FORMAT,
    "frames": "zhub-frames-1",
    "core": "zhub-core-1",
    "lora": "zhub-lora-1",
    "dora": "zhub-dora-1",
}
ROUTING_FORMAT = "zhub-routing-1"


def write_z(path: Path, z: Mapping[str, Tensor], *, basis_fingerprint: str, base_model: str) -> None:
    """Write multipliers, float32, with the basis they belong to. Whole or not at all.

    Raises:
        ArtifactError: NaN or infinite multipliers.
    """
    for name, multipliers in z.items():
        if not torch.isfinite(multipliers).all():
            raise ArtifactError(f"z of '{name}' holds NaN or infinite multipliers; refusing to write it.")
    _write(path, z, {"format": Z_FORMAT, "basis_fingerprint": basis_fingerprint, "base_model": base_model})


def read_z(path: Path, *, sha256: str, basis: Basis) -> dict[str, Tensor]:
    """Read the multipliers of an expert for use on ``basis``.

    Raises:
        DigestMismatchError: the file's bytes are not those that ``sha256`` names; nothing in it was looked at.
        ArtifactError: not a z file, or its values are not finite float32 numbers.
        BasisMismatchError: the z belongs to another basis.
    """
    z, description = _read(path, sha256, Z_FORMAT)
    _check_basis(path, description, basis.fingerprint)
    check_z(z, basis)
    return z


@dataclass(frozen=True)
class ExpertFile:
    """What the file of an expert of any kind holds: its tensors, and the ``settings`` that say what they mean."""

    kind: AdapterKind
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any]


def write_expert(path: Path, expert: ExpertFile, *, basis_fingerprint: str, base_model: str) -> None:
    """Write what an adapter exports, float32, with the basis it belongs to. Raises as ``write_z``."""
    if expert.kind == "svf":
        write_z(path, expert.tensors, basis_fingerprint=basis_fingerprint, base_model=base_model)
        return
    for name, tensor in expert.tensors.items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"'{name}' holds NaN or infinite numbers; refusing to write it.")
    description = {"format": FORMATS[expert.kind], "basis_fingerprint": basis_fingerprint, "base_model": base_model}
    _write(path, expert.tensors, {**expert.settings, **description})


def read_expert(path: Path, *, sha256: str, basis: Basis) -> ExpertFile:
    """Read the file of an expert of any kind. Whether tensors of other kinds than SVF fit is for their model to say.

    Raises:
        DigestMismatchError, ArtifactError, BasisMismatchError: as ``read_z``.
    """
    tensors, description = _read(path, sha256, *FORMATS.values())
    _check_basis(path, description, basis.fingerprint)
    kind = next(kind for kind, name in FORMATS.items() if name == description["format"])
    if kind == "svf":
        check_z(tensors, basis)
    elif not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ArtifactError(f"{path.name}: NaN or infinite numbers.")
    return ExpertFile(kind, tensors, description)


def write_routing(path: Path, centroid: Centroid, *, basis_fingerprint: str) -> None:
    """Write where an expert's prompts lie among the base's hidden states."""
    tensors = {"mean": centroid.mean, "directions": centroid.directions, "variances": centroid.variances}
    numbers = {"noise": centroid.noise, "threshold": centroid.threshold}
    _write(path, tensors, {"format": ROUTING_FORMAT, "basis_fingerprint": basis_fingerprint, **numbers})


def read_routing(path: Path, *, sha256: str, basis_fingerprint: str) -> Centroid:
    """Read an expert's centroid.

    Raises:
        DigestMismatchError, ArtifactError, BasisMismatchError: as ``read_z``.
    """
    tensors, description = _read(path, sha256, ROUTING_FORMAT)
    _check_basis(path, description, basis_fingerprint)
    try:
        centroid = Centroid(
            tensors["mean"],
            tensors["directions"],
            tensors["variances"],
            float(description["noise"]),
            float(description["threshold"]),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtifactError(f"{path.name}: it lacks a part of a centroid: {exc}") from exc
    width, count = len(centroid.mean), len(centroid.variances)
    if centroid.mean.shape != (width,) or centroid.directions.shape != (count, width):
        raise ArtifactError(f"{path.name}: directions {tuple(centroid.directions.shape)}, expected {(count, width)}.")
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    positive = min(centroid.noise, centroid.threshold) > 0 and bool((centroid.variances > 0).all())
    if not finite or not positive:
        raise ArtifactError(f"{path.name}: expected finite tensors and positive variances, noise and threshold.")
    return centroid


def _write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    content = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    # One metadata key: safetensors writes several in an order that changes from process to process.
    replace_file(path, save(content, metadata={"zhub": canonical_json(dict(description)).decode()}))


def _read(path: Path, sha256: str, *formats: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise ArtifactError(f"{path}: cannot read it: {exc}") from exc
    # The bytes that were hashed are the bytes that are parsed: the file is opened once.
    actual = hashlib.sha256(raw).hexdigest()
    if actual != sha256:
        raise DigestMismatchError(path.name, expected=sha256, actual=actual)
    try:
        tensors = load(raw)
        header_size = int.from_bytes(raw[:8], "little")
        description = json.loads(json.loads(raw[8 : 8 + header_size])["__metadata__"]["zhub"])
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise ArtifactError(f"{path.name}: not a safetensors file that zhub wrote: {exc}") from exc
    if not isinstance(description, dict) or description.get("format") not in formats:
        raise ArtifactError(f"{path.name}: expected format {' or '.join(map(repr, formats))}, found {description!r}.")
    return tensors, description


def _check_basis(path: Path, description: Mapping[str, Any], expected: str) -> None:
    actual = str(description.get("basis_fingerprint"))
    if actual != expected:
        raise BasisMismatchError(
            f"{path.name} belongs to basis {actual}, this base model has basis {expected}.",
            expected=expected,
            actual=actual,
        )
