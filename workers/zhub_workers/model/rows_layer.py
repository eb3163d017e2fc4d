"""A layer whose rows follow experts by what each adds to the layer's input or output, or by merged weights."""

import torch
from torch import Tensor, nn

from zhub_workers.model.projected import Blocks, Sides, blocks_linear
from zhub_workers.model.svf import adapt_weight, factored_change, rows_break_even


class RowsLayer:
    """One layer in the state ``rows``.

    The factored form until the tokens that it has read would have paid for merged weights, which then takes at most
    twice the operations of whichever form is the better one for a batch whose length nobody knows beforehand.

    Args:
        stack: of all experts, ``(K, r)``.
        mergeable: whether the merged weights may be divided by, and there is memory for them.
        first_is_base: whether the first expert leaves the matrix as it is. Its rows come first, and cost nothing.
    """

    def __init__(
        self, layer: nn.Module, stack: Tensor, q: Tensor, sides: Sides, *, mergeable: bool, first_is_base: bool
    ) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self._layer, self._stack, self._q, self._sides = layer, stack, q, sides
        self._q_rows = q.to(weight.dtype)
        break_even = rows_break_even(weight.shape[0], weight.shape[1], q.shape[1])
        self._tokens_left = len(stack) * break_even if mergeable else float("inf")
        self._merged: Tensor | None = None
        self._first_is_base = first_is_base
        self._base_rows = 0
        self._owners: Tensor | None = None
        self._blocks: Blocks | None = None

    def assign(self, owners: Tensor, blocks: Blocks) -> None:
        self._owners, self._blocks = owners, blocks
        self._base_rows = blocks.sizes[0] if self._first_is_base and blocks.experts[0] == 0 else 0

    def forward(self, x: Tensor) -> Tensor:
        if self._owners is None or self._blocks is None:
            raise RuntimeError("no row has an expert yet: call assign(owners) before the first forward")
        # Some architectures flatten (rows, tokens) into one axis before a layer.
        by_row = x.reshape(len(self._owners), -1, x.shape[-1])
        self._tokens_left -= by_row.shape[0] * by_row.shape[1]
        if self._base_rows == len(self._owners):
            y: Tensor = type(self._layer).forward(self._layer, x)
            return y
        if self._tokens_left > 0:
            deltas = self._stack[self._owners[self._base_rows :]]
            return _forward_factored(self._layer, x, deltas, self._q_rows, self._sides, self._base_rows)
        if self._merged is None:
            self._merged = self._merge()
        y = blocks_linear(by_row, self._merged, bias_of(self._layer), self._stack, self._q, self._sides, self._blocks)
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def _merge(self) -> Tensor:
        weight: Tensor = self._layer.weight  # type: ignore[assignment]
        return adapt_weight(weight, self._q, self._stack, right=self._sides.right)


def forward_one(layer: nn.Module, delta: Tensor, q: Tensor, sides: Sides, x: Tensor) -> Tensor:
    return _forward_factored(layer, x, delta.unsqueeze(0), q, sides)


def _forward_factored(
    layer: nn.Module, x: Tensor, delta_rows: Tensor, q: Tensor, sides: Sides, base_rows: int = 0
) -> Tensor:
    """``base_rows``: of the batch's first rows, which have no delta."""
    if sides.of_input:
        x = _changed_rows(x, None, delta_rows, q, base_rows)
    y: Tensor = type(layer).forward(layer, x)
    return y if sides.of_input else _changed_rows(y, bias_of(layer), delta_rows, q, base_rows)


def _changed_rows(x: Tensor, bias: Tensor | None, delta_rows: Tensor, q: Tensor, base_rows: int) -> Tensor:
    """Add to each row but the first what its delta makes of it, less the bias."""
    by_row = x.reshape(base_rows + delta_rows.shape[0], -1, x.shape[-1])
    rows = by_row[base_rows:]
    changed = rows + factored_change(rows if bias is None else rows - bias, q, delta_rows)
    return (torch.cat([by_row[:base_rows], changed]) if base_rows else changed).view(x.shape)


def bias_of(layer: nn.Module) -> Tensor | None:
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return bias
