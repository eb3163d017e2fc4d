"""The basis of a base model: the singular value decomposition of every matrix that experts adapt.

Made once per base and kept for ever, because singular vectors are unique only up to sign, order of equal values
and rounding: a z read against another basis is noise. A basis is a directory with one safetensors file per matrix
and ``basis.json``, whose SHA-256 is the **basis fingerprint**.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from zhub.errors import ArtifactError, BasisMismatchError, UnsupportedModelError
from zhub.manifest import canonical_json, sha256_file
from zhub_workers.model.base_model import BaseModel, tensor_bytes
from zhub_workers.model.layers import Layer, adapted_layers, is_transposed
from zhub_workers.model.moe import MoeMatrix
from zhub_workers.model.svf import carried_share, decompose
from zhub_workers.model.weights import LoadedWeights, Weights

BASIS_FILE = "basis.json"
ALGORITHM = "torch.linalg.svd"
LEADING_ALGORITHM = "torch.svd_lowrank"  # where the rank is less than half of what there is; see ``decompose``
FACTORS = ("u", "s", "vh")


@dataclass(frozen=True)
class Basis:
    """The factors of every adapted matrix: ``name -> (u (m, r), s (r,), vh (r, n))``, float32, memory-mapped.

    ``r`` is ``min(m, n)``, or fewer where the base was decomposed to a rank.
    """

    fingerprint: str
    weights_fingerprint: str
    factors: dict[str, tuple[Tensor, Tensor, Tensor]]

    @property
    def parameters(self) -> int:
        """How many numbers an expert on this basis has."""
        return sum(len(s) for _, s, _ in self.factors.values())


def decompose_base(
    base: BaseModel,
    directory: Path,
    *,
    rank: int | None = None,
    weights: Weights | None = None,
    device: torch.device | None = None,
    on_matrix: Callable[[int, int], None] | None = None,
) -> str:
    """Write the basis of ``base`` into ``directory`` and return its fingerprint.

    Resumable: a matrix whose file is there, and was made from the same weight, is kept. ``basis.json`` is written
    last, so a directory that has one is complete. One matrix is in memory at a time, beside what ``weights`` holds.

    Args:
        rank: of how many leading singular directions of each matrix; None: of all.
        weights: what the matrices are read from; None: the base, which then is loaded.
        device: where they are decomposed; None: where they are.
        on_matrix: called with ``(done, total)`` after each matrix.

    Raises:
        UnsupportedModelError: a weight holds NaN or infinities, or cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = weights or LoadedWeights(base.model)
    layers = adapted_layers(base.model)
    read = _Reader(weights)
    matrices = []
    for index, (name, layer) in enumerate(layers.items()):
        file = directory / f"{index:05d}.safetensors"
        weight = read(name, layer)
        _write_factors(file, name, weight, rank, device)
        matrix: dict[str, Any] = {"name": name, "shape": list(weight.shape), "file": file.name}
        matrix["sha256"] = sha256_file(file)
        if rank is not None:
            matrix["carried_share"] = _carried_share(file, weight)
        matrices.append(matrix)
        del weight  # before the next one is read
        if on_matrix is not None:
            on_matrix(index + 1, len(layers))
    content: dict[str, Any] = {
        "weights_fingerprint": weights.fingerprint,
        "algorithm": ALGORITHM,
        "dtype": "float32",
        "matrices": matrices,
    }
    if rank is not None:
        content |= {"algorithm": LEADING_ALGORITHM, "rank": rank}
    index_bytes = canonical_json(content)
    replace_file(directory / BASIS_FILE, index_bytes)
    return hashlib.sha256(index_bytes).hexdigest()


class _Reader:
    """Reads the weight of one layer after the other; those of MoE experts from their common parameter, once."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._parameter, self._tensor = "", torch.empty(0)

    def __call__(self, name: str, layer: Layer) -> Tensor:
        """The weight of a layer as ``(m=out, n=in)``."""
        parameter = name.rpartition(".")[0] if isinstance(layer, MoeMatrix) else f"{name}.weight"
        if parameter != self._parameter:
            self._tensor = torch.empty(0)  # before the next one is read
            self._parameter, self._tensor = parameter, self._weights.tensor(parameter)
        weight = self._tensor[layer.index] if isinstance(layer, MoeMatrix) else self._tensor
        return weight.T if is_transposed(layer) else weight


def load_basis(directory: Path, expected_fingerprint: str) -> Basis:
    """Load a basis, every file of it checked against its digest; the factors stay memory-mapped.

    Raises:
        BasisMismatchError: the directory holds another basis than the one asked for, or its files were changed.
        ArtifactError: a file is missing or malformed.
    """
    try:
        content = (directory / BASIS_FILE).read_bytes()
    except OSError as exc:
        raise ArtifactError(f"{directory}: no complete basis there: {exc}") from exc
    _check_digest(BASIS_FILE, expected_fingerprint, hashlib.sha256(content).hexdigest())
    index: dict[str, Any] = json.loads(content)
    factors = {}
    for matrix in index["matrices"]:
        file = directory / matrix["file"]
        try:
            _check_digest(file.name, matrix["sha256"], sha256_file(file))
            tensors = load_file(file)
        except (OSError, SafetensorError) as exc:
            raise ArtifactError(f"{file}: cannot read the factors of '{matrix['name']}': {exc}") from exc
        factors[matrix["name"]] = (tensors["u"], tensors["s"], tensors["vh"])
    return Basis(expected_fingerprint, index["weights_fingerprint"], factors)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def carried_shares(directory: Path) -> list[float]:
    """Of each matrix of a basis of a rank, what share of its squared norm the directions carry, see ``carried_share``.

    Empty for a whole basis, whose directions carry all.
    """
    index = json.loads((directory / BASIS_FILE).read_bytes())
    return [matrix["carried_share"] for matrix in index["matrices"] if "carried_share" in matrix]


def _carried_share(file: Path, weight: Tensor) -> float:
    with safe_open(file, framework="pt") as kept:
        return round(carried_share(weight.detach().cpu(), kept.get_tensor("s")), 6)


def _write_factors(file: Path, name: str, weight: Tensor, rank: int | None, device: torch.device | None) -> None:
    weight_sha256 = hashlib.sha256(tensor_bytes(weight)).hexdigest()
    if _is_kept(file, weight, rank, weight_sha256):
        return
    try:
        u, s, vh = decompose(weight if device is None else weight.to(device), rank)
    except ValueError as exc:
        raise UnsupportedModelError(f"matrix '{name}': {exc}") from exc
    _save({"u": u.cpu(), "s": s.cpu(), "vh": vh.cpu()}, file, {"name": name, "weight_sha256": weight_sha256})


def _save(tensors: dict[str, Tensor], file: Path, description: dict[str, str]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    # One metadata key: safetensors writes several in an order that changes from process to process.
    save_file(tensors, temporary, metadata={"zhub": canonical_json(description).decode()})
    temporary.replace(file)


def _is_kept(file: Path, weight: Tensor, rank: int | None, weight_sha256: str) -> bool:
    """Whether an earlier run already wrote this matrix, from these very bytes."""
    m, n = weight.shape
    r = min(m, n) if rank is None else min(m, n, rank)
    try:
        with safe_open(file, framework="pt") as kept:
            description = json.loads((kept.metadata() or {}).get("zhub", "{}"))
            shapes = [list(kept.get_slice(key).get_shape()) for key in FACTORS]
    except (OSError, SafetensorError, ValueError):
        return False
    return description.get("weight_sha256") == weight_sha256 and shapes == [[m, r], [r], [r, n]]


def _check_digest(name: str, expected: str, actual: str) -> None:
    if expected != actual:
        raise BasisMismatchError(
            f"{name}: expected sha256 {expected}, found {actual}: this is not the basis that was asked for.",
            expected=expected,
            actual=actual,
        )


def check_z(z: dict[str, Tensor], basis: Basis) -> None:
    """Refuse a z that does not fit this basis, matrix by matrix, or holds anything but finite float32 numbers.

    Matrices that z leaves out stay as they are in the base.

    Raises:
        BasisMismatchError: a matrix that the basis lacks, or another number of singular values.
        ArtifactError: another dtype, NaN or infinities.
    """
    if unknown := sorted(z.keys() - basis.factors.keys()):
        raise BasisMismatchError(f"z has the matrix '{unknown[0]}', which the basis lacks.")
    for name, multipliers in z.items():
        expected = tuple(basis.factors[name][1].shape)
        if tuple(multipliers.shape) != expected:
            raise BasisMismatchError(
                f"z of '{name}' has shape {tuple(multipliers.shape)}, the basis {expected}.",
                expected=str(expected),
                actual=str(tuple(multipliers.shape)),
            )
        if multipliers.dtype != torch.float32:
            raise ArtifactError(f"z of '{name}' is {multipliers.dtype}, expected torch.float32.")
        if not torch.isfinite(multipliers).all():
            raise ArtifactError(f"z of '{name}' holds NaN or infinite multipliers.")
