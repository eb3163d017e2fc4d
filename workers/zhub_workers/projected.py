"""Linear layers with merged weights, whose backward gives the gradient of the multipliers and never one of a weight.

With ``W' = W (I + Q diag(delta) Q^T)`` the backward's own ``dx = dy W'`` already holds what the gradient needs:
``Q^T dx = z * Q^T W^T dy``, so ``g_i = sum_t (Q^T dx_t)_i (Q^T x_t)_i / z_i``. From the other side, where
``W' = (I + Q diag(delta) Q^T) W``, it is the layer's output that does: ``g_i = sum_t (Q^T dy_t)_i (Q^T y_t)_i / z_i``,
and the input need not even be kept. No matrix of a weight's size is made. Multipliers near zero cannot be divided by;
``AdaptedModel`` gives those matrices the factored form, which has no division.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zhub_workers.svf import squared_projections


@dataclass(frozen=True)
class Sides:
    """How a layer stores its weight, and on which side its square factor stands.

    ``transposed``: stored ``(n, m)``, as Conv1D does. ``of_input``: Q is V, ``(n, n)``; otherwise U, ``(m, m)``.
    """

    transposed: bool
    of_input: bool

    @property
    def right(self) -> bool:
        """Whether Q multiplies the stored weight from the right."""
        return self.of_input != self.transposed


@dataclass(frozen=True)
class Groups:
    """The rows of a batch by the expert that they follow, padded to the largest group.

    A group is padded with a row of its own, so that what is not finite in one expert stays there even where it is
    multiplied by zero.

    Attributes:
        experts: those that have rows, ``(k,)``, ascending.
        places: the rows of each group, ``(k, c)``; None where the batch is already in this order without padding.
        back: where in ``(k, c)``, flattened, each row of the batch is, ``(b,)``.
    """

    experts: Tensor
    places: Tensor | None
    back: Tensor

    @staticmethod
    def of(owners: Tensor) -> "Groups":
        """Group rows by owner, ``(b,)`` int64."""
        experts, which, counts = torch.unique(owners, return_inverse=True, return_counts=True)
        order = which.argsort(stable=True)
        width = int(counts.max())
        starts = counts.cumsum(0) - counts
        column = torch.arange(width, device=owners.device)
        places = order[starts.unsqueeze(1) + column.minimum(counts.unsqueeze(1) - 1)]
        back = torch.empty_like(owners)
        back[order] = which[order] * width + torch.arange(len(owners), device=owners.device) - starts[which[order]]
        in_order = places.numel() == len(owners) and bool((order[1:] > order[:-1]).all())
        return Groups(experts, None if in_order else places, back)

    def split(self, x: Tensor) -> Tensor:
        """``(b, t, n)`` to ``(k, c * t, n)``."""
        rows = x if self.places is None else x[self.places.flatten()]
        return rows.reshape(len(self.experts), -1, x.shape[-1])

    def join(self, grouped: Tensor) -> Tensor:
        """The inverse of ``split``: ``(k, c * t, m)`` to ``(b, t, m)``."""
        slots = len(self.back) if self.places is None else self.places.numel()
        rows = grouped.reshape(slots, -1, grouped.shape[-1])
        return rows if self.places is None else rows[self.back]

    def split_gradient(self, dy: Tensor) -> Tensor:
        """``split`` of a gradient: the padding has none."""
        if self.places is None:
            return self.split(dy)
        slots = dy.new_zeros(self.places.numel(), *dy.shape[1:])
        slots[self.back] = dy
        return slots.reshape(len(self.experts), -1, dy.shape[-1])


def merged_linear(x: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor, q: Tensor, sides: Sides) -> Tensor:
    """Return ``x W'^T + bias``; a backward reaches ``x`` and ``delta``.

    Args:
        x: ``(..., n)``.
        weight: merged, as the layer stores it.
        delta: that the weight was merged with, ``(r,)``, float32.
        q: ``(r, r)``, float32.
    """
    y: Tensor = _MergedLinear.apply(x, weight, bias, delta, q, sides)  # type: ignore[no-untyped-call]
    return y


def grouped_linear(
    x: Tensor, weights: Tensor, bias: Tensor | None, delta: Tensor, q: Tensor, sides: Sides, groups: Groups
) -> Tensor:
    """Return ``x_b W'_k^T + bias``, with k the expert of row b; a backward reaches ``x`` and ``delta``.

    Args:
        x: ``(b, t, n)``.
        weights: merged, of the experts in ``groups``, ``(k, ...)`` as the layer stores one.
        delta: of all experts, ``(K, r)``, float32. Experts without rows get a gradient of zeros.
    """
    y: Tensor = _GroupedLinear.apply(x, weights, bias, delta, q, sides, groups)  # type: ignore[no-untyped-call]
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


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        delta: Tensor,
        q: Tensor,
        sides: Sides,
        groups: Groups,
    ) -> Tensor:
        grouped = groups.split(x)
        y = grouped @ (weights if sides.transposed else weights.transpose(1, 2))
        joined = groups.join(y)
        if bias is not None:
            joined = joined + bias
        elif groups.places is None:
            joined = joined.clone()  # some architectures add to a layer's output in place
        ctx.save_for_backward(grouped if sides.of_input else y, weights, delta, q)
        ctx.sides, ctx.groups = sides, groups
        return joined

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, weights, delta, q = ctx.saved_tensors
        sides: Sides = ctx.sides
        groups: Groups = ctx.groups
        grouped = groups.split_gradient(dy)
        below = grouped
        if ctx.needs_input_grad[0] or sides.of_input:
            below = grouped @ (weights.transpose(1, 2) if sides.transposed else weights)
        gradient = None
        if ctx.needs_input_grad[3]:
            gradient = torch.zeros_like(delta)
            own = squared_projections(below if sides.of_input else grouped, kept, q)
            gradient[groups.experts] = own / (1 + delta[groups.experts])
        dx = groups.join(below) if ctx.needs_input_grad[0] else None
        return dx, None, None, gradient, None, None, None
