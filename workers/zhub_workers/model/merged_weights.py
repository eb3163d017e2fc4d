"""The weights of the expert that was merged last.

A step of training samples from an expert, differentiates at it, and measures what the step has made of it, which is
the expert of the next step. Merging takes ``2 m n r + 2 r^3`` operations a matrix, as many as reading some ``r`` tokens
or more: so it is done once an expert, and not once a request.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class MergedWeights:
    """Keeps the weights of one expert, as long as no other is merged and nobody drops them.

    Another thread may drop them at any time: whoever uses them has them already.
    """

    def __init__(self) -> None:
        self._kept: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})  # multipliers and weights, by matrix

    @torch.no_grad()
    def of(self, z: Mapping[str, Tensor], merge: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """The weights of ``z``, by matrix: those that are kept, or all of them made anew by ``merge(name, z)``.

        Those of another expert are dropped first, so that there are never two in memory.
        """
        multipliers, weights = self._kept
        if not _are_equal(z, multipliers):
            self.drop()
            del multipliers, weights
            weights = {name: merge(name, own) for name, own in z.items()}
            # Copies: the caller may move its own in place, as an optimiser does.
            self._kept = ({name: own.detach().clone() for name, own in z.items()}, weights)
        return {name: weights[name] for name in z}

    def drop(self) -> None:
        """Give the memory back."""
        self._kept = ({}, {})


def _are_equal(z: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> bool:
    """Whether all of ``z`` is among what is kept. Waits for the device once."""
    if not z:
        return True
    if not z.keys() <= kept.keys():
        return False
    return bool(torch.stack([(own == kept[name]).all() for name, own in z.items()]).all())
