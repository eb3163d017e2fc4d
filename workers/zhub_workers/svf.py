"""Singular value fine-tuning: a weight moves only along its own singular directions.

With ``W = U diag(s) Vh`` an expert is one multiplier ``z`` per singular value, ``W' = U diag(s * z) Vh``
(eq. 1 of arXiv:2501.06252). Everything here is written in ``delta = z - 1``, so that an untouched expert
adds exactly zero to the weight that the model was loaded with, and not the rounding of an SVD.

Departure from the authors' code: no sigmoid, and no rescaling to the base's nuclear norm. Neither is in the
paper, and with the rescaling an expert cannot make a matrix stronger or weaker as a whole.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def decompose(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD of a weight, computed and given in float32.

    Args:
        weight: ``(m, n)``, any floating dtype.

    Returns:
        ``u (m, r)``, ``s (r,)`` descending, ``vh (r, n)``, with ``r = min(m, n)``, all contiguous.

    Raises:
        ValueError: the weight is not a matrix, or holds NaN or infinities.
    """
    if weight.ndim != 2:
        raise ValueError(f"expected a matrix, got shape {tuple(weight.shape)}")
    matrix = weight.detach().float()
    if not torch.isfinite(matrix).all():
        raise ValueError("the weight has NaN or infinite entries")
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u.contiguous(), s.contiguous(), vh.contiguous()


def adapt_weight(weight: Tensor, u: Tensor, s: Tensor, vh: Tensor, delta: Tensor) -> Tensor:
    """Return ``W + U diag(s * delta) Vh``, differentiable in ``delta``.

    Computed in float32 and rounded once, at the end, to the weight's dtype: a delta of zeros gives the
    weight back bit for bit in every dtype.

    Args:
        weight: ``(m, n)``.
        u, s, vh: its thin SVD, ``(m, r)``, ``(r,)``, ``(r, n)``, float32.
        delta: ``z - 1``, ``(r,)``, float32.

    Raises:
        ValueError: ``delta`` and ``s`` differ in length.
    """
    if delta.shape != s.shape:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, the matrix has {s.shape[0]} singular values")
    return torch.addmm(weight.float(), u * (s * delta), vh).to(weight.dtype)


def factored_delta(x: Tensor, u: Tensor, s: Tensor, vh: Tensor, delta_rows: Tensor) -> Tensor:
    """Return what each row's own expert adds to ``x W^T``, without making any row's weight.

    ``((x Vh^T) * (s * delta_b)) U^T``: all rows share the factors and differ in ``r`` numbers, so a batch may
    mix any number of experts at the cost of one.

    Args:
        x: the layer's input, ``(b, t, n)``.
        u, s, vh: ``(m, r)``, ``(r,)``, ``(r, n)``, float32.
        delta_rows: ``z - 1`` of every row, ``(b, r)``; zeros add exactly zero.

    Returns:
        ``(b, t, m)`` in the dtype of ``x``.
    """
    scale = (s * delta_rows).unsqueeze(1)
    return (((x.float() @ vh.T) * scale) @ u.T).to(x.dtype)


def mix(zs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return ``1 + sum_k w_k (z_k - 1)``: weight 1 on one expert is that expert, all zero is the base.

    Mixes multipliers, never the parameters behind them.

    Raises:
        ValueError: no expert, or not as many weights as experts.
    """
    if not zs or len(zs) != len(weights):
        raise ValueError(f"{len(zs)} experts and {len(weights)} weights: expected as many of both, at least one")
    delta = torch.zeros_like(zs[0])
    for z, weight in zip(zs, weights, strict=True):
        delta = delta + weight * (z - 1)
    return 1 + delta
