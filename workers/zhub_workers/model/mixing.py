"""The z of a mixture, ``z = 1 + Σ α_k (z_k − 1)``: a weight for all matrices, for each block, or for each matrix."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zhub.recipes import Granularity
from zhub_workers.model.adapters import block_of

ALL = "all"
OUTSIDE = "outside of blocks"


class Mixer:
    """Experts of one basis, and the groups of matrices that have a weight in common.

    ``deltas`` are ``z_k − 1`` of each matrix that one of them changes, ``(k, r)`` float32.

    Args:
        experts: at least one, the multipliers of each by matrix, ``(r,)``; a matrix that is missing is ones.
        device: of the model that follows what is mixed.
    """

    def __init__(
        self, experts: Sequence[Mapping[str, Tensor]], granularity: Granularity, device: torch.device | str
    ) -> None:
        names = sorted({name for z in experts for name in z})
        self.deltas = {name: _stacked([z.get(name) for z in experts]).to(device) for name in names}
        self._group_of = {name: group_of(name, granularity) for name in names}
        self.groups = list(dict.fromkeys(self._group_of.values()))
        self.shape = len(experts), len(self.groups)

    def group(self, name: str) -> int:
        """Which group a matrix is in."""
        return self.groups.index(self._group_of[name])

    def values(self, weights: Tensor) -> dict[str, Tensor]:
        """``z − 1`` of each matrix, ``(r,)`` float32 on the device, for ``weights (k, groups)``."""
        columns = weights.float().T.contiguous()
        of_group = dict(zip(self.groups, columns, strict=True))
        return {name: of_group[self._group_of[name]].to(deltas.device) @ deltas for name, deltas in self.deltas.items()}


def group_of(name: str, granularity: Granularity) -> str:
    """The group that a matrix shares its weights with."""
    if granularity == "matrix":
        return name
    block = block_of(name) if granularity == "layer" else None
    return ALL if granularity == "global" else OUTSIDE if block is None else str(block)


def _stacked(multipliers: Sequence[Tensor | None]) -> Tensor:
    """``z − 1``, zeros for who has none of this matrix."""
    zeros = torch.zeros(max(len(z) for z in multipliers if z is not None))
    return torch.stack([zeros if z is None else z.float() - 1 for z in multipliers])
