"""A list of vectors that travels between processes as one tensor."""

from typing import Any

import torch
from torch import Tensor


class Vectors(list[Tensor]):
    """Vectors of any lengths. A plain list would pickle, for each, the whole tensor that it is a view of."""

    def __reduce__(self) -> tuple[Any, ...]:
        if not self:
            return Vectors, ()
        return _split, (torch.cat(list(self)), [len(vector) for vector in self])


def _split(flat: Tensor, sizes: list[int]) -> Vectors:
    return Vectors(torch.split(flat, sizes))
