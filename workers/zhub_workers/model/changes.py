"""What an expert of any kind changes in a base, in one form that can be mixed and served.

Row for row, a matrix with a change answers ``y = (1 + gain) * (W x) + SVF + U_k C Vh_k x + up (down x)``, where the
part of the SVF is that of its multipliers. Everything in it is linear in the change of W, so a mixture of experts, of
one kind or of several, is the sum of their changes, each times its weight. Only a DoRA has a gain: it scales the rows
of ``W + c B A`` by ``d``, so its gain is ``d - 1`` and its ``up`` is ``d c B``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zhub.errors import ArtifactError, InvalidRequestError
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import block_of, core_settings
from zhub_workers.model.artifact import ExpertFile, read_expert
from zhub_workers.model.core_model import CoreModel
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.lora import check_matrices, matrix_shapes
from zhub_workers.model.moe import MoeMatrix
from zhub_workers.model.svf import mix

PartT = TypeVar("PartT")


@dataclass(frozen=True)
class LowRank:
    """``up (m, rank)`` and ``down (rank, n)``, float32."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Change:
    """What an expert or a mixture changes, by matrix, float32; a matrix that is not in a part has none of it.

    Attributes:
        z: multipliers, ``(r,)``.
        cores: ``(k, k)``.
        low_rank: matrices beside the weight, their scale in ``up``.
        gains: what each row of the weight is longer by, as a share, ``(m,)``.
    """

    z: Mapping[str, Tensor] = field(default_factory=dict)
    cores: Mapping[str, Tensor] = field(default_factory=dict)
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    gains: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of its tensors in memory."""
        tensors = [*self.z.values(), *self.cores.values(), *self.gains.values()]
        tensors += [side for pair in self.low_rank.values() for side in (pair.up, pair.down)]
        return sum(tensor.nbytes for tensor in tensors)


def read_change(path: Path, *, sha256: str, adapted: AdaptedModel) -> Change:
    """Read the file of an expert of any kind for use on this model.

    Raises:
        DigestMismatchError, ArtifactError, BasisMismatchError: as ``read_expert``; or its tensors do not fit the model.
    """
    expert = read_expert(path, sha256=sha256, basis=adapted.basis)
    match expert.kind:
        case "svf":
            return Change(z=expert.tensors)
        case "frames" | "core":
            _check_names(path, adapted, expert.tensors)
            settings = core_settings(expert.kind, expert.settings)
            return Change(cores=CoreModel(adapted, settings, expert.tensors).cores(expert.tensors))
        case "lora" | "dora":
            names = {key.rpartition(".")[0] for key in expert.tensors}
            _check_names(path, adapted, names)
            return _low_rank_change({name: adapted.linear_layer(name) for name in sorted(names)}, expert)


def mix_changes(changes: Sequence[Change], weights: Sequence[float]) -> Change:
    """Return the mixture ``sum_k w_k change_k``: of multipliers ``1 + sum_k w_k (z_k - 1)``.

    Experts that leave a matrix out leave it as it is in the base, and one of weight 0 leaves all.
    """
    followed = [(change, weight) for change, weight in zip(changes, weights, strict=True) if weight]
    changes, weights = [change for change, _ in followed], [weight for _, weight in followed]
    if weights == [1]:
        return changes[0]
    zs = _by_name([change.z for change in changes], weights)
    cores = _by_name([change.cores for change in changes], weights)
    low_rank = _by_name([change.low_rank for change in changes], weights)
    gains = _by_name([change.gains for change in changes], weights)
    return Change(
        {name: mix([z for z, _ in parts], [weight for _, weight in parts]) for name, parts in zs.items()},
        {name: stack_cores([weight * core for core, weight in parts]).sum(0) for name, parts in cores.items()},
        {
            name: LowRank(
                torch.cat([weight * pair.up for pair, weight in parts], 1), torch.cat([pair.down for pair, _ in parts])
            )
            for name, parts in low_rank.items()
        },
        {name: torch.stack([weight * gain for gain, weight in parts]).sum(0) for name, parts in gains.items()},
    )


def restricted(change: Change, layers: Collection[int], adapted: AdaptedModel) -> Change:
    """The change in these blocks of the model alone; matrices that are in no block stay the base's.

    Raises:
        InvalidRequestError: the model has no such block.
    """
    blocks = {block_of(name) for name in adapted.layers} - {None}
    if unknown := sorted(set(layers) - blocks):
        numbers = sorted(block for block in blocks if block is not None)
        raise InvalidRequestError(
            f"The base has no layer {unknown[0]}: its layers with matrices that experts change are "
            f"{_as_ranges(numbers)}. Give some of these, or leave 'layers' out for all.",
            param="experts",
        )

    def within(part: Mapping[str, PartT]) -> dict[str, PartT]:
        return {name: of_matrix for name, of_matrix in part.items() if block_of(name) in layers}

    return Change(within(change.z), within(change.cores), within(change.low_rank), within(change.gains))


def _as_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as ``0-3, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"


def stack_cores(cores: Sequence[Tensor]) -> Tensor:
    """Cores of one matrix as one tensor ``(K, k, k)``, with k the largest of theirs: smaller ones get zeros."""
    largest = max(len(core) for core in cores)
    return torch.stack([F.pad(core, (0, largest - len(core)) * 2) for core in cores])


def _by_name(parts: Sequence[Mapping[str, PartT]], weights: Sequence[float]) -> dict[str, list[tuple[PartT, float]]]:
    """For each matrix, in order, what those have that change it, with their weights."""
    names = sorted({name for part in parts for name in part})
    weighted = list(zip(parts, weights, strict=True))
    return {name: [(part[name], weight) for part, weight in weighted if name in part] for name in names}


@torch.no_grad()
def _low_rank_change(layers: Mapping[str, nn.Module], expert: ExpertFile) -> Change:
    rank, alpha = int(expert.settings["rank"]), float(expert.settings["alpha"])
    dora = expert.kind == "dora"
    check_matrices(expert.tensors, matrix_shapes(layers, rank, dora=dora))
    low_rank, gains = {}, {}
    for name, layer in layers.items():
        weight = layer_weight(layer)
        up = alpha / rank * expert.tensors[f"{name}.lora_B"].to(weight.device)
        down = expert.tensors[f"{name}.lora_A"].to(weight.device)
        if dora:
            lengths = torch.linalg.norm(weight + up @ down, dim=1)
            scale = expert.tensors[f"{name}.lora_magnitude_vector"].to(weight.device) / lengths
            gains[name], up = scale - 1, scale.unsqueeze(1) * up
        low_rank[name] = LowRank(up, down)
    return Change(low_rank=low_rank, gains=gains)


def _check_names(path: Path, adapted: AdaptedModel, names: Collection[str]) -> None:
    if unknown := sorted(set(names) - adapted.layers.keys()):
        raise ArtifactError(f"{path.name} changes the matrix '{unknown[0]}', which the base lacks.")
    if of_moe := [name for name in sorted(names) if isinstance(adapted.layers[name], MoeMatrix)]:
        raise ArtifactError(f"{path.name} changes '{of_moe[0]}' of an MoE expert, which multipliers alone can change.")
