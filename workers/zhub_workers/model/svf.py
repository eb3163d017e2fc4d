"""Singular value fine-tuning: a weight moves only along its own singular directions.

With ``W = U diag(s) Vh`` an expert is one multiplier ``z`` per singular value, ``W' = U diag(s * z) Vh``
(eq. 1 of arXiv:2501.06252). Everything here is written in ``delta = z - 1``, so that an untouched expert
adds exactly zero to the weight that the model was loaded with, and not the rounding of an SVD.

Only the square factor is needed. Where ``m > n`` that is ``Q = V``, ``(n, n)``: because ``W V = U diag(s)``,

    W' = W (I + Q diag(delta) Q^T)          x W'^T = (x + ((x Q) * delta) Q^T) W^T

and otherwise ``Q = U``, ``(m, m)``, from the other side: ``W' = (I + Q diag(delta) Q^T) W``. The singular values and
the wide factor are in ``W`` already. Against the textbook form ``U((s * z) * (Vh x))`` beside ``W x`` that saves
``2 |m - n| r`` operations a token and most of the memory of the factors.

Of very large matrices the leading singular directions alone may be known: Q is then ``(n, k)`` or ``(m, k)``, and an
expert moves the weight along these. All else holds: the weight itself is never approximated.

Departure from the authors' code: no rescaling to the base's nuclear norm. It is not in the paper, and with it an
expert cannot make a matrix stronger or weaker as a whole.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

# Of the random projections: directions beyond those that are kept, and products with the weight and its transpose.
OVERSAMPLING, POWER_ITERATIONS = 16, 4


def decompose(weight: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD of a weight, or its leading part, computed and given in float32.

    Args:
        weight: ``(m, n)``, any floating dtype.
        rank: how many leading singular directions are wanted; None: all. Where that is less than half of them they are
            approximated by random projections, always the same ones (algorithm 5.1 of arXiv:0909.4061, in torch).

    Returns:
        ``u (m, r)``, ``s (r,)`` descending, ``vh (r, n)``, with ``r = min(m, n, rank)``, all contiguous.

    Raises:
        ValueError: the weight is not a matrix, or holds NaN or infinities.
    """
    if weight.ndim != 2:
        raise ValueError(f"expected a matrix, got shape {tuple(weight.shape)}")
    matrix = weight.detach().float()
    # The sum is a cheap first look: one number that is not finite makes it so, and seldom does anything else.
    if not torch.isfinite(matrix.sum()) and not torch.isfinite(matrix).all():
        raise ValueError("the weight has NaN or infinite entries")
    r = min(matrix.shape) if rank is None else min(*matrix.shape, rank)
    if 2 * (r + OVERSAMPLING) < min(matrix.shape):
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=r + OVERSAMPLING, niter=POWER_ITERATIONS)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :r].contiguous(), s[:r].contiguous(), vh[:r].contiguous()


def carried_share(weight: Tensor, s: Tensor) -> float:
    """What share of a weight's squared Frobenius norm its leading singular directions carry: what experts can move."""
    return float(s.double().square().sum() / weight.double().square().sum().clamp_min(torch.finfo(torch.float64).tiny))


def adapt_weight(weight: Tensor, q: Tensor, delta: Tensor, *, right: bool) -> Tensor:
    """Return ``W + W C`` with ``C = Q diag(delta) Q^T``, or ``W + C W``: the weight of one expert, or of each of K.

    Computed in float32 and rounded once, at the end, to the weight's dtype: a delta of zeros gives the weight back bit
    for bit in every dtype.

    Args:
        weight: ``(m, n)`` or, for layers that store it so, ``(n, m)``.
        q: ``(r, k)``, one singular direction a column, float32; k is r unless only the leading ones are known.
        delta: ``z - 1``, ``(k,)`` or ``(K, k)``, float32.
        right: whether Q holds the directions that the weight's columns count, as V does for ``(m, n)``.

    Returns:
        The shape of ``weight``, after an axis of K where ``delta`` has one.

    Raises:
        ValueError: ``delta`` and ``q`` differ in length.
    """
    if delta.shape[-1] != q.shape[1]:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, the matrix has {q.shape[1]} singular values")
    m, n = weight.shape
    wide, scaled = weight.float(), q * delta.unsqueeze(-2)
    if _merges_thin(m, n, q.shape[1]):
        return (wide + ((wide @ scaled) @ q.T if right else scaled @ (q.T @ wide))).to(weight.dtype)
    change = scaled @ q.T
    return (wide + (wide @ change if right else change @ wide)).to(weight.dtype)


def _merges_thin(m: int, n: int, k: int) -> bool:
    """Whether two thin products, ``4 m n k``, take fewer operations than the square change, ``2 r^2 k + 2 m n r``."""
    r = min(m, n)
    return 4 * m * n * k < 2 * r * r * k + 2 * m * n * r


def sigmoid_multipliers(parameters: Tensor, s: Tensor) -> Tensor:
    """Return multipliers ``m * sum(s) / sum(s * m)`` with ``m = sigmoid(p)``: the nuclear norm of the matrix stays.

    The parameterisation of the authors' code (utils.py, svd_reinforce_hydra.py), which the paper does not mention.
    Equal parameters give multipliers of one.

    Args:
        parameters, s: ``(r,)`` of one matrix.
    """
    masked = torch.sigmoid(parameters)
    return masked * (s.sum() / (s * masked).sum())


def factored_change(x: Tensor, q: Tensor, delta_rows: Tensor) -> Tensor:
    """Return ``((x Q) * delta_b) Q^T``: what each row's own expert adds, without making any row's weight.

    Of a layer's input where ``m > n``, and of its output less the bias otherwise. All rows share Q and differ in ``k``
    numbers, so a batch may mix any number of experts at the cost of one: ``4 r k`` operations a token.

    Args:
        x: ``(b, t, r)``.
        q: ``(r, k)``, in the dtype of ``x``.
        delta_rows: ``z - 1`` of every row, ``(b, k)``, float32; zeros add exactly zero.
    """
    return ((x @ q) * delta_rows.unsqueeze(1)).to(x.dtype) @ q.T


def rows_break_even(m: int, n: int, k: int) -> float:
    """From how many tokens an expert a merged weight of its own takes fewer operations than ``factored_change``.

    Merging takes ``2 m n r + 2 r^2 k`` an expert, or ``4 m n k`` (see ``_merges_thin``), the factored form ``4 r k`` a
    token; with all ``r = min(m, n)`` directions they are equal at ``(m + n) / 2`` tokens. A backward multiplies both by
    the same number.
    """
    r = min(m, n)
    return min(2 * r * r * k + 2 * m * n * r, 4 * m * n * k) / (4 * r * k)


def gradient_form(r: int, k: int, tokens: int) -> Literal["summed", "per token"]:
    """How to get ``sum_t (Q^T a_t)_i (Q^T b_t)_i`` with fewer operations: see ``squared_projections``.

    ``summed`` takes ``2 r^2 T + 2 r^2 k`` for T tokens, ``per token`` takes ``4 r k T``: equal at ``T = r`` for
    ``k = r``. The textbook forms take more for every shape, because the layer's backward has made ``b`` anyway: a dense
    dW projected on both factors takes ``2 m n T + 2 r m n``, and the closed form on both factors ``2 r (m + n) T``.
    """
    return "summed" if 2 * r * r * (tokens + k) < 4 * r * k * tokens else "per token"


def squared_projections(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """Return ``sum_t (Q^T a_t)_i (Q^T b_t)_i``, ``(..., k)`` float32.

    This is the gradient of delta: with ``g_i = s_i u_i^T dW v_i``, ``dW = sum_t dy_t x_t^T`` and ``W v_i = s_i u_i``,
    it is ``sum_t (v_i^T W^T dy_t)(v_i^T x_t)`` where ``m > n``, and ``sum_t (u_i^T dy_t)(u_i^T W x_t)`` otherwise.

    Args:
        a, b: ``(..., t, r)``.
        q: ``(r, k)``, float32.
    """
    if gradient_form(q.shape[0], q.shape[1], a.shape[-2]) == "summed":
        # Float32 from here on: only the sum over the tokens of half-precision rows is a half-precision product.
        core = (a.transpose(-2, -1) @ b).to(q.dtype)
        return ((core @ q) * q).sum(-2)
    half = q.to(a.dtype)
    return ((a @ half).to(q.dtype) * (b @ half).to(q.dtype)).sum(-2)


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
