"""Linear layers with merged weights, whose backward gives the gradient of the multipliers and never one of a weight.

With ``W' = W (I + Q diag(delta) Q^T)`` the backward's own ``dx = dy W'`` already holds what the gradient needs:
``Q^T dx = z * Q^T W^T dy``, so ``g_i = sum_t (Q^T dx_t)_i (Q^T x_t)_i / z_i``. From the other side, where
``W' = (I + Q diag(delta) Q^T) W``, it is the layer's output that does: ``g_i = sum_t (Q^T dy_t)_i (Q^T y_t)_i / z_i``,
and the input need not even be kept. No matrix of a weight's size is made. Multipliers near zero cannot be divided by;
``AdaptedModel`` gives those matrices the factored form, which has no division.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zhub_workers.model.svf import squared_projections


@dataclass(frozen=True)
class Sides:
    """How a layer stores its weight, and on which side its smaller factor Q stands.

    ``transposed``: stored ``(n, m)``, as Conv1D does. ``of_input``: Q is V, ``(n, k)``; otherwise U, ``(m, k)``.
    """

    transposed: bool
    of_input: bool

    @property
    def right(self) -> bool:
        """Whether Q multiplies the stored weight from the right."""
        return self.of_input != self.transposed


@dataclass(frozen=True)
class Blocks:
    """The rows of a batch by the expert that they follow: each expert's rows are side by side, in one block.

    Attributes:
        experts: those that have rows, ascending.
        sizes: rows of each block.
    """

    experts: list[int]
    sizes: list[int]

    @staticmethod
    def of(owners: Sequence[int]) -> "Blocks":
        """Blocks of rows by owner.

        Raises:
            ValueError: the owners do not ascend.
        """
        if list(owners) != sorted(owners):
            raise ValueError(f"rows of one expert must be side by side, experts ascending: got {list(owners)}")
        counts = Counter(owners)
        return Blocks(list(counts), list(counts.values()))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Views of ``(b, t, n)`` as one ``(tokens, n)`` a block."""
        tokens = x.shape[1]
        return torch.split(x.reshape(-1, x.shape[-1]), [size * tokens for size in self.sizes])


def merged_linear(x: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor, q: Tensor, sides: Sides) -> Tensor:
    """Return ``x W'^T + bias``; a backward reaches ``x`` and ``delta``.

    Args:
        x: ``(..., n)``.
        weight: merged, as the layer stores it.
        delta: that the weight was merged with, ``(k,)``, float32.
        q: ``(r, k)``, float32.
    """
    y: Tensor = _MergedLinear.apply(x, weight, bias, delta, q, sides)  # type: ignore[no-untyped-call]
    return y


def blocks_linear(
    x: Tensor, weights: Tensor, bias: Tensor | None, delta: Tensor, q: Tensor, sides: Sides, blocks: Blocks
) -> Tensor:
    """Return ``x_b W'_k^T + bias``, with k the expert of row b; a backward reaches ``x`` and ``delta``.

    A product for each block: nothing is padded or copied, and what is not finite in one expert stays there.

    Args:
        x: ``(b, t, n)``.
        weights: merged, of all experts, ``(K, ...)`` as the layer stores one.
        delta: of all experts, ``(K, k)``, float32. Experts without rows get a gradient of zeros.
    """
    y: Tensor = _BlocksLinear.apply(x, weights, bias, delta, q, sides, blocks)  # type: ignore[no-untyped-call]
    return y


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor, q: Tensor, sides: Sides
    ) -> Tensor:
        # The calls that the layers themselves make: other kernels round differently.
        if sides.transposed:
            flat = x.reshape(-1, x.shape[-1])
            y = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
            y = y.view(*x.shape[:-1], weight.shape[1])
        else:
            y = F.linear(x, weight, bias)
        # A copy, because some architectures add to a layer's output in place.
        ctx.save_for_backward(x if sides.of_input else y.clone(), weight, bias, delta, q)
        ctx.sides = sides
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, bias, delta, q = ctx.saved_tensors
        sides: Sides = ctx.sides
        below = dy
        if ctx.needs_input_grad[0] or sides.of_input:
            below = dy @ (weight.T if sides.transposed else weight)
        gradient = None
        if ctx.needs_input_grad[3]:
            a, b = (below, kept) if sides.of_input else (dy, kept if bias is None else kept - bias)
            a, b = a.reshape(-1, q.shape[0]), b.reshape(-1, q.shape[0])
            gradient = squared_projections(a, b, q) / (1 + delta)
        return below if ctx.needs_input_grad[0] else None, None, None, gradient, None, None


class _BlocksLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        delta: Tensor,
        q: Tensor,
        sides: Sides,
        blocks: Blocks,
    ) -> Tensor:
        y = _each(x, weights if sides.transposed else weights.transpose(1, 2), blocks)
        # A copy of what is kept, because some architectures add to a layer's output in place.
        kept = y.clone() if delta.requires_grad and not sides.of_input else x
        ctx.save_for_backward(kept, weights, delta, q)
        ctx.sides, ctx.blocks = sides, blocks
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, weights, delta, q = ctx.saved_tensors
        sides: Sides = ctx.sides
        blocks: Blocks = ctx.blocks
        below = dy
        if ctx.needs_input_grad[0] or sides.of_input:
            below = _each(dy, weights.transpose(1, 2) if sides.transposed else weights, blocks)
        gradient = None
        if ctx.needs_input_grad[3]:
            gradient = torch.zeros_like(delta)
            pairs = zip(blocks.split(below if sides.of_input else dy), blocks.split(kept), strict=True)
            own = torch.stack([squared_projections(a, b, q) for a, b in pairs])
            gradient[blocks.experts] = own / (1 + delta[blocks.experts])
        return below if ctx.needs_input_grad[0] else None, None, None, gradient, None, None, None


def _each(x: Tensor, weights: Tensor, blocks: Blocks) -> Tensor:
    """``(b, t, n)`` to ``(b, t, m)``: each block times its own expert's ``(n, m)``."""
    out = x.new_empty(x.shape[0], x.shape[1], weights.shape[2])
    for expert, rows, own in zip(blocks.experts, blocks.split(x), blocks.split(out), strict=True):
        torch.mm(rows, weights[expert], out=own)
    return out
