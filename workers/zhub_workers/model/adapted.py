"""A base model whose linear layers can follow an expert, or one expert per row, and go back to the base.

Four states of one loaded model. Outside of every context it is the base, untouched. Inside,

- ``merged(z)`` swaps in weights made once: fastest, one expert for the whole batch, no gradient;
- ``training(delta)`` does the same, and a backward reaches ``delta``;
- ``rows(stack)`` lets each row follow one of K experts, with or without gradients: at first by what an expert adds to
  a layer's input or output, and once the rows have read enough tokens to pay for it, by a merged weight each.

They agree up to float rounding, and with a delta of zeros each gives the base's logits bit for bit. One state at a
time: the model is one object, and two experts cannot have it at once. A ``weight_sharing_view``
shares its memory and has a state of its own.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zhub.errors import BasisMismatchError
from zhub_workers.model.base_model import BaseModel, layer_weight, linear_layers
from zhub_workers.model.basis import Basis, check_z
from zhub_workers.model.projected import Blocks, Sides, blocks_linear, merged_linear
from zhub_workers.model.svf import adapt_weight, factored_change, rows_break_even

# The gradient of a merged weight divides by z: rounding grows by this factor's inverse at most.
SMALLEST_DIVISOR = 0.1
STACK_BUDGET_BYTES = 1 << 30  # of the merged weights of ``rows``, where the device does not say what it has


class AdaptedModel:
    """A base model together with its basis. Of a basis only the smaller factors go to the base's device, on first use.

    Without a basis it is the base alone, which no expert can change.

    Raises:
        BasisMismatchError: the basis was made from other matrices than this model has.
    """

    def __init__(self, base: BaseModel, basis: Basis | None) -> None:
        self.base = base
        self._basis = basis
        self.layers = linear_layers(base.model)
        if basis is not None:
            _check_layers(self.layers, basis)
        self._sides: dict[str, Sides] = {}
        self._factors: dict[str, Tensor] = {}
        self._singular_values: dict[str, Tensor] = {}
        for name, (u, s, vh) in ({} if basis is None else basis.factors).items():
            sides = Sides(transposed=isinstance(self.layers[name], Conv1D), of_input=u.shape[0] > vh.shape[1])
            self._sides[name] = sides
            self._singular_values[name] = s.to(base.device)
        self._state = "base"

    @property
    def basis(self) -> Basis:
        """Its basis. Raises BasisMismatchError if it has none."""
        if self._basis is None:
            raise BasisMismatchError("The base model was loaded without its basis: no expert can be used on it.")
        return self._basis

    def weight_sharing_view(self) -> "AdaptedModel":
        """A model on the same weights and factors in memory, with a state of its own, for another thread."""
        model = self.base.model
        shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        # What RecurrentGemma's modules remember of the last forward: with its graph it could not be copied.
        states = (value for module in model.modules() for value in vars(module).values())
        shared |= {id(state): state.detach() for state in states if isinstance(state, Tensor)}
        view = AdaptedModel(replace(self.base, model=copy.deepcopy(model, shared)), self._basis)
        view._factors, view._singular_values = self._factors, self._singular_values
        return view

    def zero_delta(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """A delta of zeros, float32, on the model's device, of all matrices or of ``names``: the base itself."""
        chosen = self._sides if names is None else names
        return {name: torch.zeros_like(self._singular_values[name]) for name in chosen}

    def factor(self, name: str) -> Tensor:
        """The square factor of one matrix, ``(r, r)``: the smaller of V and U, one singular direction a column."""
        if name not in self._factors:
            u, _, vh = self.basis.factors[name]
            self._factors[name] = (vh.T if self._sides[name].of_input else u).to(self.base.device)
        return self._factors[name]

    def singular_values(self, name: str) -> Tensor:
        """Of one matrix, ``(r,)`` descending, float32, on the model's device."""
        return self._singular_values[name]

    @contextmanager
    def merged(self, z: Mapping[str, Tensor]) -> Iterator[None]:
        """Give every layer that z changes the weight of one expert, and its own weight back at the end.

        Raises:
            BasisMismatchError, ArtifactError: z does not fit, see ``check_z``.
        """
        check_z(dict(z), self.basis)
        with self._entered("merged"):
            with torch.no_grad():
                weights = {name: self._weight(name, z[name].to(self.base.device) - 1) for name in z}
            with self._forwards({}, weights):
                yield

    @contextmanager
    def training(self, delta: Mapping[str, Tensor]) -> Iterator[None]:
        """Follow one expert, with gradients for the tensors of ``delta``, ``(r,)`` a matrix, as they are on entry.

        Matrices that ``delta`` leaves out stay as they are in the base.
        """
        with self._entered("training"):
            weights: dict[str, Tensor] = {}
            forwards: dict[str, Callable[[Tensor], Tensor]] = {}
            with torch.no_grad():
                divisible = _divisible(delta)
                for name in divisible:
                    weights[name] = self._weight(name, delta[name])
            for name, values in delta.items():
                layer, q, sides = self.layers[name], self.factor(name), self._sides[name]
                if name in divisible:
                    forwards[name] = partial(_forward_merged, layer, values, q, sides)
                else:
                    forwards[name] = partial(_forward_one, layer, values, q.to(layer_weight(layer).dtype), sides)
            with self._forwards(forwards, weights):
                yield

    @contextmanager
    def rows(self, stack: Mapping[str, Tensor]) -> Iterator[Callable[[Sequence[int]], None]]:
        """Let each row of the batch follow one of K experts: ``stack[name]`` is their deltas, ``(K, r)``.

        Yields ``assign(owners)``, to be called before the first forward and whenever the batch's rows change: one owner
        a row, ascending, each an index on the K axis. Gradients reach the tensors of ``stack`` where they require them,
        each row's only its own expert's. A matrix that no expert changes costs nothing, and one that ``stack`` leaves
        out stays as it is in the base.
        """
        with self._entered("rows"):
            with torch.no_grad():
                changed = _changed(stack)
                divisible = _divisible({name: stack[name] for name in changed})
            wanted = sum(len(stack[name]) * self.layers[name].weight.nbytes for name in divisible)  # type: ignore[operator, misc]
            room = wanted <= _stack_budget(self.base.device)
            layers = {
                name: _RowsLayer(
                    self.layers[name],
                    stack[name].to(self.base.device),
                    self.factor(name),
                    self._sides[name],
                    mergeable=room and name in divisible,
                )
                for name in changed
            }

            def assign(owners: Sequence[int]) -> None:
                blocks = Blocks.of(owners)
                owner_of_row = torch.tensor(owners, device=self.base.device)  # (b,)
                for layer in layers.values():
                    layer.assign(owner_of_row, blocks)

            with self._forwards({name: layer.forward for name, layer in layers.items()}, {}):
                yield assign

    @contextmanager
    def _entered(self, state: str) -> Iterator[None]:
        if self._state != "base":
            raise RuntimeError(f"the model is already in the state '{self._state}', leave it before '{state}'")
        self._state = state
        try:
            yield
        finally:
            self._state = "base"

    @contextmanager
    def _forwards(
        self, forwards: Mapping[str, Callable[[Tensor], Tensor]], weights: Mapping[str, Tensor]
    ) -> Iterator[None]:
        """Override forwards and weights of layers by name. Hooks that others put on the modules still run."""
        kept = {name: self.layers[name].weight for name in weights}
        try:
            for name, weight in weights.items():
                self.layers[name].weight = nn.Parameter(weight, requires_grad=False)
            for name, forward in forwards.items():
                self.layers[name].forward = forward
            yield
        finally:
            for name in forwards:
                self.layers[name].__dict__.pop("forward", None)
            for name, own in kept.items():
                self.layers[name].weight = own

    def _weight(self, name: str, delta: Tensor) -> Tensor:
        """The adapted weight in the layout that the layer stores: another one would take another kernel and round
        differently, and a delta of zeros would no longer be the base."""
        weight: Tensor = self.layers[name].weight  # type: ignore[assignment]
        return adapt_weight(weight, self.factor(name), delta, right=self._sides[name].right)


class _RowsLayer:
    """One layer in the state ``rows``.

    The factored form until the tokens that it has read would have paid for merged weights, which then takes at most
    twice the operations of whichever form is the better one for a batch whose length nobody knows beforehand.
    """

    def __init__(self, layer: nn.Module, stack: Tensor, q: Tensor, sides: Sides, *, mergeable: bool) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self._layer, self._stack, self._q, self._sides = layer, stack, q, sides
        self._q_rows = q.to(weight.dtype)
        self._tokens_left = len(stack) * rows_break_even(*weight.shape) if mergeable else float("inf")
        self._merged: Tensor | None = None
        self._owners: Tensor | None = None
        self._blocks: Blocks | None = None

    def assign(self, owners: Tensor, blocks: Blocks) -> None:
        self._owners, self._blocks = owners, blocks

    def forward(self, x: Tensor) -> Tensor:
        if self._owners is None or self._blocks is None:
            raise RuntimeError("no row has an expert yet: call assign(owners) before the first forward")
        # Some architectures flatten (rows, tokens) into one axis before a layer.
        by_row = x.reshape(len(self._owners), -1, x.shape[-1])
        self._tokens_left -= by_row.shape[0] * by_row.shape[1]
        if self._tokens_left > 0:
            return _forward_factored(self._layer, x, self._stack[self._owners], self._q_rows, self._sides)
        if self._merged is None:
            self._merged = self._merge()
        y = blocks_linear(by_row, self._merged, _bias(self._layer), self._stack, self._q, self._sides, self._blocks)
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def _merge(self) -> Tensor:
        weight: Tensor = self._layer.weight  # type: ignore[assignment]
        return adapt_weight(weight, self._q, self._stack, right=self._sides.right)


def _forward_merged(layer: nn.Module, delta: Tensor, q: Tensor, sides: Sides, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        y: Tensor = type(layer).forward(layer, x)
        return y
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return merged_linear(x, weight, _bias(layer), delta, q, sides)


def _forward_one(layer: nn.Module, delta: Tensor, q: Tensor, sides: Sides, x: Tensor) -> Tensor:
    return _forward_factored(layer, x, delta.unsqueeze(0), q, sides)


def _forward_factored(layer: nn.Module, x: Tensor, delta_rows: Tensor, q: Tensor, sides: Sides) -> Tensor:
    rows = delta_rows.shape[0]
    if sides.of_input:
        by_row = x.reshape(rows, -1, x.shape[-1])
        x = x + factored_change(by_row, q, delta_rows).view(x.shape)
    y: Tensor = type(layer).forward(layer, x)
    if sides.of_input:
        return y
    bias = _bias(layer)
    by_row = (y if bias is None else y - bias).reshape(rows, -1, y.shape[-1])
    return y + factored_change(by_row, q, delta_rows).view(y.shape)


def _bias(layer: nn.Module) -> Tensor | None:
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return bias


def _changed(stack: Mapping[str, Tensor]) -> list[str]:
    """The matrices that some expert changes, or that a gradient is wanted for. Waits for the device once."""
    if not stack:
        return []
    anything = torch.stack([deltas.any() for deltas in stack.values()]).tolist()
    return [name for name, some in zip(stack, anything, strict=True) if some or stack[name].requires_grad]


def _divisible(delta: Mapping[str, Tensor]) -> list[str]:
    """The matrices all of whose multipliers may be divided by. Waits for the device once."""
    if not delta:
        return []
    least = torch.stack([(1 + values).abs().min() for values in delta.values()]).tolist()
    return [name for name, z in zip(delta, least, strict=True) if not z < SMALLEST_DIVISOR]


def _stack_budget(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else STACK_BUDGET_BYTES


def _check_layers(layers: Mapping[str, nn.Module], basis: Basis) -> None:
    if layers.keys() != basis.factors.keys():
        odd = sorted(layers.keys() ^ basis.factors.keys())
        raise BasisMismatchError(f"the model and the basis have different matrices: '{odd[0]}' is only in one of them.")
    for name, layer in layers.items():
        u, _, vh = basis.factors[name]
        if tuple(layer_weight(layer).shape) != (u.shape[0], vh.shape[1]):
            raise BasisMismatchError(
                f"matrix '{name}' is {tuple(layer_weight(layer).shape)}, in the basis {(u.shape[0], vh.shape[1])}."
            )
