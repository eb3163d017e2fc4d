"""The files of a base with one expert folded into its weights: same names, same shards, each tensor in its own dtype.

The base's files are copied, and the bytes of the matrices that the expert changes are written over in the copies. So
whatever loads the base loads the result, and one parameter is in memory at a time.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhub.registry.model_directory import FILE_SUFFIXES
from zhub_workers.model.base_model import load_base_model, tensor_bytes
from zhub_workers.model.layers import Layer, adapted_layers, is_transposed
from zhub_workers.model.matrix_changes import MatrixChanges
from zhub_workers.model.moe import MoeMatrix
from zhub_workers.model.weight_files import LENGTH_BYTES
from zhub_workers.model.weights import WeightFiles, find_weight_files

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PIECE = 1 << 20  # numbers that are looked at together
NOT_COPIED = ("README.md",)  # it describes the base


@dataclass(frozen=True)
class RoundingError:
    """How far the stored weights are from ``W`` and what the expert adds to it, in Frobenius norms over all matrices.

    ``of_change``: as a share of what the expert adds, 0 where it adds nothing. ``of_weights``: of the weights.
    """

    of_change: float
    of_weights: float


def write_merged(
    source: Path, target: Path, changes: MatrixChanges, *, on_parameter: Callable[[int, int], None] | None = None
) -> RoundingError:
    """Write the model in ``source`` with these changes into the directory ``target``.

    Args:
        on_parameter: called with ``(done, total)`` after each parameter.

    Raises:
        UnsupportedModelError: the files of this model cannot be written back matrix by matrix.
    """
    model = load_base_model(source, device="meta").model
    files = find_weight_files(source, model)
    layers = adapted_layers(model)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in FILE_SUFFIXES and path.name not in NOT_COPIED:
            shutil.copyfile(path, target / path.name)
    writer = _Writer(target, files)
    parameters = _by_parameter(changes.names, layers)
    for done, (parameter, names) in enumerate(parameters.items(), 1):
        writer.fold(parameter, {name: layers[name] for name in names}, changes)
        if on_parameter is not None:
            on_parameter(done, len(parameters))
    return writer.error


class _Writer:
    """Writes changed tensors over those in copies of the files, and counts how far rounding takes them."""

    def __init__(self, target: Path, files: WeightFiles) -> None:
        self._target, self._files = target, files
        self._places: dict[str, dict[str, tuple[int, torch.dtype]]] = {}  # by file: where each tensor begins
        self._squares = {"error": 0.0, "change": 0.0, "weights": 0.0}

    @property
    def error(self) -> RoundingError:
        error, change, weights = (math.sqrt(self._squares[name]) for name in ("error", "change", "weights"))
        return RoundingError(error / change if change else 0.0, error / weights if weights else 0.0)

    def fold(self, parameter: str, layers: Mapping[str, Layer], changes: MatrixChanges) -> None:
        """Add what the expert changes of the matrices that stand in one parameter, and write it."""
        whole = self._files.tensor(parameter).float().clone()
        self._squares["weights"] += _square(whole)
        for name, layer in layers.items():
            matrix = whole[layer.index] if isinstance(layer, MoeMatrix) else whole
            weight = matrix.T if is_transposed(layer) else matrix
            change = changes.of(name, weight)
            self._squares["change"] += _square(change)
            weight += change
        for stored, tensor in self._files.stored_form(parameter, whole).items():
            file = self._target / self._files.file_of(stored).name
            offset, dtype = self._places_in(file)[stored]
            rounded = tensor.to(dtype)
            self._squares["error"] += _square(rounded, less=tensor)
            with file.open("r+b") as opened:
                opened.seek(offset)
                opened.write(tensor_bytes(rounded))

    def _places_in(self, file: Path) -> dict[str, tuple[int, torch.dtype]]:
        if file.name not in self._places:
            self._places[file.name] = _places(file)
        return self._places[file.name]


def _by_parameter(names: list[str], layers: Mapping[str, Layer]) -> dict[str, list[str]]:
    """The matrices in each parameter of the model: several where it is that of MoE experts."""
    by_parameter: dict[str, list[str]] = {}
    for name in names:
        is_moe = isinstance(layers[name], MoeMatrix)
        by_parameter.setdefault(name.rpartition(".")[0] if is_moe else f"{name}.weight", []).append(name)
    return by_parameter


def _places(file: Path) -> dict[str, tuple[int, torch.dtype]]:
    """Where in a safetensors file each tensor begins, and in which dtype it is stored."""
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        header: dict[str, Any] = json.loads(opened.read(header_bytes))
    places = {}
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] in DTYPES:
            places[name] = (LENGTH_BYTES + header_bytes + tensor["data_offsets"][0], DTYPES[tensor["dtype"]])
    return places


def _square(tensor: Tensor, *, less: Tensor | None = None) -> float:
    """The squared Frobenius norm of a tensor, or of its difference to another, a piece at a time."""
    flat, other = tensor.reshape(-1), None if less is None else less.reshape(-1)
    total = 0.0
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE].double()
        if other is not None:
            piece -= other[start : start + PIECE]
        total += float(piece.square().sum())
    return total
