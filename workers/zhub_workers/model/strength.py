"""How much an expert changes, matrix by matrix: written beside it when it is published, for who has neither weights nor
torch. ``strength.json`` has norms; for an expert of the kind ``svf``, ``change.safetensors`` has ``s (z - 1)``.

``W' - W = U diag(s (z - 1)) Vh``, so that vector has the Frobenius norm of the change, and two of one basis have the
angle between their changes.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from zhub.manifest import CHANGE_FILE, STRENGTH_FILE, MatrixStrength, Strengths
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import block_of
from zhub_workers.model.basis import replace_file
from zhub_workers.model.changes import Change
from zhub_workers.model.layers import layer_weight


def write_strengths(directory: Path, change: Change, adapted: AdaptedModel) -> list[str]:
    """Write what an expert changes; return the names of the files."""
    singular = {name: adapted.basis.factors[name][1] for name in _names(change)}
    vectors = {name: singular[name] * (z.cpu() - 1) for name, z in change.z.items()}
    matrices = [
        MatrixStrength(
            name=name,
            layer=block_of(name),
            norm=_norm(name, change, vectors, adapted),
            weight_norm=float(singular[name].double().norm()),
            distance=float((change.z[name].cpu().double() - 1).norm()) if name in change.z else None,
        )
        for name in _names(change)
    ]
    (directory / STRENGTH_FILE).write_bytes(Strengths(matrices=matrices).canonical())
    if vectors.keys() != set(_names(change)):
        return [STRENGTH_FILE]
    replace_file(directory / CHANGE_FILE, save({name: vector.contiguous() for name, vector in vectors.items()}))
    return [STRENGTH_FILE, CHANGE_FILE]


def _names(change: Change) -> list[str]:
    return sorted({*change.z, *change.cores, *change.low_rank, *change.gains})


@torch.no_grad()
def _norm(name: str, change: Change, vectors: dict[str, Tensor], adapted: AdaptedModel) -> float:
    """The Frobenius norm of what is added to the weight. An expert of one kind has one of these parts."""
    if name in vectors:
        return float(vectors[name].double().norm())
    if name in change.cores:  # between orthonormal vectors
        return float(change.cores[name].double().norm())
    pair = change.low_rank[name]
    if name not in change.gains:
        inner = (pair.up.double().T @ pair.up.double()) * (pair.down.double() @ pair.down.double().T).T
        return math.sqrt(max(0.0, float(inner.sum())))
    weight = layer_weight(adapted.linear_layer(name)).float()
    return float((change.gains[name].unsqueeze(1) * weight + pair.up @ pair.down).double().norm())
