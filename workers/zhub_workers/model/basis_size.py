"""How much the basis of a base model takes, and how much of the model its matrices are, before any is decomposed."""

import re
from dataclasses import dataclass
from typing import Any

from zhub_workers.model.base_model import adapted_layers, layer_weight
from zhub_workers.model.moe import MoeMatrix

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
ITEM_BYTES = 4  # of a float32


@dataclass(frozen=True)
class BasisSize:
    """What a decomposition will make.

    Attributes:
        matrices: how many, each MoE expert's its own.
        file_bytes: of their factors, on disk.
        memory_bytes: of the square factors, which a process holds once experts have changed every matrix.
        adapted_parameters: how many of the model's parameters these matrices hold.
        adapted_share: how much of all.
        unreached: names of 3-D weights, as MoE experts have, that zhub cannot adapt; ``*`` is any number.
    """

    matrices: int
    file_bytes: int
    memory_bytes: int
    adapted_parameters: int
    adapted_share: float
    unreached: list[str]


def basis_size(model: Any) -> BasisSize:
    """The size of the basis of ``model``, from shapes alone."""
    layers = adapted_layers(model)
    shapes = [layer_weight(layer).shape for layer in layers.values()]
    adapted = sum(m * n for m, n in shapes)
    reached = {id(getattr(layer.module, layer.parameter)) for layer in layers.values() if isinstance(layer, MoeMatrix)}
    return BasisSize(
        matrices=len(layers),
        file_bytes=ITEM_BYTES * sum(min(m, n) * (m + n + 1) for m, n in shapes),
        memory_bytes=ITEM_BYTES * sum(min(m, n) * (min(m, n) + 1) for m, n in shapes),
        adapted_parameters=adapted,
        adapted_share=adapted / sum(parameter.numel() for parameter in model.parameters()),
        # The kernels of convolutions have three axes too, one of them of length one.
        unreached=sorted(
            {
                NUMBER.sub("*", name)
                for name, parameter in model.named_parameters()
                if parameter.ndim == 3 and min(parameter.shape[1:]) > 1 and id(parameter) not in reached
            }
        ),
    )
