"""The weights of a mixture from a few examples, by one backward pass: the slope of the loss along each expert.

In a mixture ``z = 1 + Σ α_k · (z_k − 1)`` the loss changes with ``α_k``, at the base where all α are zero, by
``⟨dL/dz, z_k − 1⟩``. So one gradient with respect to z has the slopes of all experts, however many there are, where the
paper's search generates answers for every set of weights that it tries.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from zhub_workers.model.mixing import Mixer


def loss_slopes(mixer: Mixer, gradient: Mapping[str, Tensor]) -> Tensor:
    """How a loss changes with each weight at the base, ``(k, groups)`` float32 on the CPU; negative where it helps.

    Args:
        gradient: of the loss with respect to z at the base, ``(r,)`` for each matrix of the mixer.
    """
    slopes = torch.zeros(mixer.shape)
    for name, deltas in mixer.deltas.items():
        slopes[:, mixer.group(name)] += (deltas @ gradient[name].float()).cpu()
    return slopes


def mixture_weights(slopes: Tensor) -> Tensor:
    """Weights in proportion to how steeply each expert lowers the loss, ``(k, groups)`` float64.

    Of sum one in each group; zeros in one where no expert lowers it.
    """
    helping = (-slopes.double()).clamp_min(0.0)
    totals = helping.sum(0)
    return helping / totals.where(totals > 0, 1.0)
