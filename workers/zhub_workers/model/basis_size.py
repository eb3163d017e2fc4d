"""How much the basis of a base model takes, and how much of the model its matrices are, before any is decomposed."""

import re
from dataclasses import dataclass
from typing import Any

from zhub_workers.model.layers import adapted_layers, layer_weight
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
        adapted_parameters: how many of the model's ``parameters`` are in these matrices.
        unreached: names of 3-D weights, as MoE experts have, that zhub cannot adapt; ``*`` is any number.
    """

    matrices: int
    file_bytes: int
    memory_bytes: int
    adapted_parameters: int
    parameters: int
    unreached: list[str]

    @property
    def summary(self) -> str:
        """For who waits for the decomposition."""
        return (
            f"Experts can adapt {self.matrices:,} matrices, {self.adapted_parameters / self.parameters:.0%} of the "
            f"parameters. Their basis takes {_in_units(self.file_bytes)} on disk and up to "
            f"{_in_units(self.memory_bytes)} of a worker's memory."
        )

    @property
    def warning(self) -> str | None:
        """What experts cannot adapt, and why."""
        if not self.unreached:
            return None
        return (
            "Experts leave these weights of mixture-of-experts layers as they are, because zhub does not know how this "
            f"architecture uses them: {', '.join(self.unreached)}."
        )


def basis_size(model: Any) -> BasisSize:
    """The size of the basis of ``model``, from shapes alone."""
    layers = adapted_layers(model)
    shapes = [layer_weight(layer).shape for layer in layers.values()]
    reached = {id(getattr(layer.module, layer.parameter)) for layer in layers.values() if isinstance(layer, MoeMatrix)}
    return BasisSize(
        matrices=len(layers),
        file_bytes=ITEM_BYTES * sum(min(m, n) * (m + n + 1) for m, n in shapes),
        memory_bytes=ITEM_BYTES * sum(min(m, n) * (min(m, n) + 1) for m, n in shapes),
        adapted_parameters=sum(m * n for m, n in shapes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        # The kernels of convolutions have three axes too, one of them of length one.
        unreached=sorted(
            {
                NUMBER.sub("*", name)
                for name, parameter in model.named_parameters()
                if parameter.ndim == 3 and min(parameter.shape[1:]) > 1 and id(parameter) not in reached
            }
        ),
    )


def _in_units(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"
