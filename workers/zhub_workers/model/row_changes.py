"""A batch whose rows follow experts of any kind, each row its own.

Multipliers are the state ``rows`` of ``AdaptedModel``. The other parts of a ``Change`` are added to what each layer
answers in that state, in factored form, so no row's weight is ever made:

- cores share their two factors, so all rows take two products together and one of ``(k, k)`` each;
- low-rank matrices differ from expert to expert: two products for each expert, of its own rows side by side;
- a gain scales the layer's own answer, which is computed a second time where other rows have multipliers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.changes import Change, LowRank, stack_cores
from zhub_workers.model.core_model import core_change
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.projected import Blocks


@contextmanager
def following_rows(adapted: AdaptedModel, changes: Sequence[Change]) -> Iterator[Callable[[Sequence[int]], None]]:
    """Let each row of the batch follow one of K changes; yields ``assign`` as ``AdaptedModel.rows`` does. No gradient.

    Rows whose change has nothing for a matrix get exactly what the base answers. Changes without multipliers cost least
    side by side.
    """
    multipliers, places = _multipliers(changes)
    with adapted.rows(_delta_stack(adapted, multipliers)) as assign_multipliers:
        added = {name: _AddedLayer(adapted, name, changes) for name in _added_names(changes)}

        def assign(owners: Sequence[int]) -> None:
            assign_multipliers([places[owner] for owner in owners])
            owner_of_row, blocks = torch.tensor(owners, device=adapted.base.device), Blocks.of(owners)
            for layer in added.values():
                layer.assign(owner_of_row, blocks)

        with _forwards(adapted, added):
            yield assign


class _AddedLayer:
    """What the changes add to one layer beside their multipliers."""

    def __init__(self, adapted: AdaptedModel, name: str, changes: Sequence[Change]) -> None:
        self._layer = adapted.linear_layer(name)
        self._inner: Callable[[Tensor], Tensor] = self._layer.forward  # with the multipliers of the rows
        self._has_multipliers = "forward" in vars(self._layer)
        weight = layer_weight(self._layer)
        m, device, dtype = weight.shape[0], weight.device, weight.dtype
        self._cores = self._gains = None
        if any(name in change.cores for change in changes):
            none = torch.zeros(1, 1, device=device)
            self._cores = stack_cores([change.cores.get(name, none).to(device) for change in changes])
            self._u, self._vh = (factor.to(dtype) for factor in adapted.leading(name, self._cores.shape[-1]))
        if any(name in change.gains for change in changes):
            zeros = torch.zeros(m, device=device)
            self._gains = torch.stack([change.gains.get(name, zeros).to(device) for change in changes])
        self._low_rank = {
            owner: LowRank(change.low_rank[name].up.to(device, dtype), change.low_rank[name].down.to(device, dtype))
            for owner, change in enumerate(changes)
            if name in change.low_rank
        }
        self._owners: Tensor | None = None
        self._blocks = Blocks([], [])

    def assign(self, owners: Tensor, blocks: Blocks) -> None:
        self._owners, self._blocks = owners, blocks

    def forward(self, x: Tensor) -> Tensor:
        if self._owners is None:
            raise RuntimeError("no row has an expert yet: call assign(owners) before the first forward")
        y = self._inner(x)
        # Some architectures flatten (rows, tokens) into one axis before a layer.
        by_row = x.reshape(len(self._owners), -1, x.shape[-1])
        added = y.reshape(len(self._owners), -1, y.shape[-1]).clone(memory_format=torch.contiguous_format)
        if self._gains is not None:
            added += self._gain(x, y).view(added.shape)
        if self._cores is not None:
            added += core_change(by_row, self._u, self._cores[self._owners], self._vh)
        for expert, rows, answered in zip(
            self._blocks.experts, self._blocks.split(by_row), self._blocks.split(added), strict=True
        ):
            if pair := self._low_rank.get(expert):
                answered += (rows @ pair.down.T) @ pair.up.T
        return added.view(y.shape)

    def _gain(self, x: Tensor, y: Tensor) -> Tensor:
        """What the gains add: a share of ``W x``, without the bias and without what multipliers add."""
        assert self._gains is not None and self._owners is not None
        if self._has_multipliers:
            y = type(self._layer).forward(self._layer, x)
        bias: Tensor | None = self._layer.bias  # type: ignore[assignment]
        product = (y if bias is None else y - bias).reshape(len(self._owners), -1, y.shape[-1])
        return (product * self._gains[self._owners].unsqueeze(1)).to(y.dtype)


def _added_names(changes: Sequence[Change]) -> list[str]:
    return sorted(
        {name for change in changes for part in (change.cores, change.low_rank, change.gains) for name in part}
    )


def _multipliers(changes: Sequence[Change]) -> tuple[list[Mapping[str, Tensor]], list[int]]:
    """The multipliers of the changes, neighbours without any taken as one; and the place of each change among them."""
    multipliers: list[Mapping[str, Tensor]] = []
    places = []
    for change in changes:
        if not multipliers or change.z or multipliers[-1]:
            multipliers.append(change.z)
        places.append(len(multipliers) - 1)
    return multipliers, places


def _delta_stack(adapted: AdaptedModel, zs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The Δ of K sets of multipliers, ``(K, r)`` for each matrix that is in one of them; zeros for the others."""
    zero = adapted.zero_delta({name for z in zs for name in z})
    return {
        name: torch.stack([z[name].to(zeros.device) - 1 if name in z else zeros for z in zs])
        for name, zeros in sorted(zero.items())
    }


@contextmanager
def _forwards(adapted: AdaptedModel, added: Mapping[str, _AddedLayer]) -> Iterator[None]:
    """Override the forwards of layers, and give those of the state that the model is in back at the end."""
    kept = {name: vars(adapted.layers[name]).get("forward") for name in added}
    try:
        for name, layer in added.items():
            vars(adapted.layers[name])["forward"] = layer.forward
        yield
    finally:
        for name, forward in kept.items():
            vars(adapted.layers[name]).pop("forward", None)
            if forward is not None:
                vars(adapted.layers[name])["forward"] = forward
