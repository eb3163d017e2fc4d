"""A base model whose matrices can follow an expert, or one expert per row, and go back to the base.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from zhub.errors import BasisMismatchError
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.basis import Basis, check_z
from zhub_workers.model.layers import Layer, Place, adapted_layers, is_transposed, layer_weight, parameters_with
from zhub_workers.model.merged_weights import MergedWeights
from zhub_workers.model.moe import MoeChange, MoeFollower, MoeMatrix
from zhub_workers.model.projected import Blocks, Sides, merged_linear
from zhub_workers.model.rows_layer import RowsLayer, bias_of, forward_one
from zhub_workers.model.svf import adapt_weight

# The gradient of a merged weight divides by z: rounding grows by this factor's inverse at most.
SMALLEST_DIVISOR = 0.1
STACK_BUDGET_BYTES = 1 << 30  # of the merged weights of ``rows``, where the device does not say what it has


class AdaptedModel:
    """A base model together with its basis. Of a basis only the smaller factors go to the base's device, on first use.

    Its layers are those of the basis. Without a basis it is the base alone, which no expert can change.

    Raises:
        BasisMismatchError: the basis was made from other matrices than this model has.
    """

    def __init__(self, base: BaseModel, basis: Basis | None) -> None:
        self.base = base
        self._basis = basis
        layers = adapted_layers(base.model)
        self.layers = layers if basis is None else _layers_of_basis(layers, basis)
        self._sides: dict[str, Sides] = {}
        self._factors: dict[str, Tensor] = {}
        self._moe_factors: dict[str, Tensor] = {}
        self._singular_values: dict[str, Tensor] = {}
        self._leading: dict[str, tuple[Tensor, Tensor]] = {}
        self._merged_weights = MergedWeights()
        for name, (u, s, vh) in ({} if basis is None else basis.factors).items():
            sides = Sides(transposed=is_transposed(self.layers[name]), of_input=u.shape[0] > vh.shape[1])
            self._sides[name] = sides
            self._singular_values[name] = s.to(base.device)
        self._state = "base"

    @property
    def basis(self) -> Basis:
        """Its basis. Raises BasisMismatchError if it has none."""
        if self._basis is None:
            raise BasisMismatchError("The base model was loaded without its basis: no expert can be used on it.")
        return self._basis

    @property
    def memory_bytes(self) -> int:
        """Of the weights, and of the factors once all were used."""
        weights: int = sum(parameter.nbytes for parameter in self.base.model.parameters())
        factors = () if self._basis is None else self._basis.factors.values()
        return weights + sum(min(u.nbytes, vh.nbytes) for u, _, vh in factors)

    def weight_sharing_view(self) -> "AdaptedModel":
        """A model on the same weights and factors in memory, with a state of its own, for another thread."""
        model = self.base.model
        shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        # What RecurrentGemma's modules remember of the last forward: with its graph it could not be copied.
        states = (value for module in model.modules() for value in vars(module).values())
        shared |= {id(state): state.detach() for state in states if isinstance(state, Tensor)}
        view = AdaptedModel(replace(self.base, model=copy.deepcopy(model, shared)), self._basis)
        view._factors, view._singular_values = self._factors, self._singular_values
        view._leading = self._leading
        view._moe_factors = self._moe_factors
        return view

    def zero_delta(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """A delta of zeros, float32, on the model's device, of all matrices or of ``names``: the base itself."""
        chosen = self._sides if names is None else names
        return {name: torch.zeros_like(self._singular_values[name]) for name in chosen}

    def factor(self, name: str) -> Tensor:
        """The smaller of V and U of one matrix, ``(r, k)``, one singular direction a column; k = r of a whole basis."""
        if name not in self._factors:
            u, _, vh = self.basis.factors[name]
            self._factors[name] = (vh.T if self._sides[name].of_input else u).to(self.base.device)
        return self._factors[name]

    def singular_values(self, name: str) -> Tensor:
        """Of one matrix, ``(r,)`` descending, float32, on the model's device."""
        return self._singular_values[name]

    def linear_layer(self, name: str) -> nn.Module:
        """One layer that is a module of its own, and no matrix of an MoE expert."""
        layer = self.layers[name]
        assert isinstance(layer, nn.Module)
        return layer

    def leading(self, name: str, k: int) -> tuple[Tensor, Tensor]:
        """The first k singular vectors of one matrix, ``u (m, k)`` and ``vh (k, n)``, float32, on the device."""
        u, vh = self._leading.get(name, (None, None))
        if u is None or vh is None or u.shape[1] < k:
            all_u, _, all_vh = self.basis.factors[name]
            u, vh = all_u[:, :k].contiguous().to(self.base.device), all_vh[:k].contiguous().to(self.base.device)
            self._leading[name] = (u, vh)
        return u[:, :k], vh[:k]

    def drop_merged(self) -> None:
        """Give the memory of weights back that ``merged`` and ``training`` keep for the next time."""
        self._merged_weights.drop()

    @contextmanager
    def merged(self, z: Mapping[str, Tensor]) -> Iterator[None]:
        """Give every layer that z changes the weight of one expert, and its own weight back at the end.

        Raises:
            BasisMismatchError, ArtifactError: z does not fit, see ``check_z``.
        """
        check_z(dict(z), self.basis)
        linear, moe = self._by_layer({name: multipliers.to(self.base.device) for name, multipliers in z.items()})
        with self._entered("merged"):
            kept = self._merged_weights.of(linear, self._weight)
            # Those of MoE experts are written into copies of whole parameters: kept, they would be in memory twice.
            made = ((name, self._weight(name, multipliers)) for name, multipliers in moe.items())
            with self._forwards({}, chain(kept.items(), made)):
                yield

    @contextmanager
    def training(self, delta: Mapping[str, Tensor]) -> Iterator[None]:
        """Follow one expert, with gradients for the tensors of ``delta``, ``(r,)`` a matrix, as they are on entry.

        Matrices that ``delta`` leaves out stay as they are in the base.
        """
        with self._entered("training"):
            linear, moe = self._by_layer(delta)
            followers = self._followers({name: values.unsqueeze(0) for name, values in moe.items()})
            for follower in followers.values():
                follower.assign(torch.zeros(1, dtype=torch.int64, device=self.base.device))
            with torch.no_grad():
                divisible = _divisible(linear)
                weights = self._merged_weights.of({name: 1 + delta[name] for name in divisible}, self._weight)
            forms: dict[str, Callable[[Tensor], Tensor]] = {}
            for name, values in linear.items():
                layer, q, sides = self.linear_layer(name), self.factor(name), self._sides[name]
                if name in divisible:
                    forms[name] = partial(_forward_merged, layer, values, q, sides)
                else:
                    forms[name] = partial(forward_one, layer, values, q.to(layer_weight(layer).dtype), sides)
            with self._forwards(forms, weights.items()), _overriding(_forwards_of(followers), {}):
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
            linear, moe = self._by_layer({name: stack[name].to(self.base.device) for name in changed})
            followers = self._followers(moe)
            with torch.no_grad():
                divisible = _divisible(linear)
                unlike_base = _changed({name: deltas[:1] for name, deltas in linear.items()})
            wanted = sum(len(stack[name]) * self.layers[name].weight.nbytes for name in divisible)  # type: ignore[operator, misc]
            room = wanted <= _stack_budget(self.base.device)
            layers = {
                name: RowsLayer(
                    self.linear_layer(name),
                    deltas,
                    self.factor(name),
                    self._sides[name],
                    mergeable=room and name in divisible,
                    first_is_base=name not in unlike_base and not deltas.requires_grad,
                )
                for name, deltas in linear.items()
            }

            def assign(owners: Sequence[int]) -> None:
                blocks = Blocks.of(owners)
                owner_of_row = torch.tensor(owners, device=self.base.device)  # (b,)
                for layer in layers.values():
                    layer.assign(owner_of_row, blocks)
                for follower in followers.values():
                    follower.assign(owner_of_row)

            forwards = {name: layer.forward for name, layer in layers.items()}
            with self._forwards(forwards, ()), _overriding(_forwards_of(followers), {}):
                yield assign

    @contextmanager
    def replaced(
        self,
        state: str,
        *,
        forwards: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Iterator[None]:
        """Give layers other forwards or weights, by name, and their own back at the end: a state that others define."""
        with self._entered(state), self._forwards(forwards or {}, (weights or {}).items()):
            yield

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
        self, forwards: Mapping[str, Callable[[Tensor], Tensor]], weights: Iterable[tuple[str, Tensor]]
    ) -> Iterator[None]:
        """Override forwards of linear layers, and weights of any, by name."""
        own = {self.linear_layer(name): forward for name, forward in forwards.items()}
        with _overriding(own, parameters_with(self.layers, weights)):
            yield

    def _by_layer(self, deltas: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Those of linear layers, and those of MoE experts' matrices."""
        moe = {name: values for name, values in deltas.items() if isinstance(self.layers[name], MoeMatrix)}
        return {name: values for name, values in deltas.items() if name not in moe}, moe

    def _followers(self, stack: Mapping[str, Tensor]) -> dict[nn.Module, MoeFollower]:
        """What follows the deltas ``(K, r)`` of MoE experts' matrices, by the modules that they are in."""
        changes: dict[nn.Module, dict[str, MoeChange]] = {}
        for parameter in dict.fromkeys(name.rpartition(".")[0] for name in stack):
            matrix = self.layers[f"{parameter}.0"]
            assert isinstance(matrix, MoeMatrix)
            names = [f"{parameter}.{index}" for index in range(len(getattr(matrix.module, matrix.parameter)))]
            none = torch.zeros_like(next(stack[name] for name in names if name in stack))
            changes.setdefault(matrix.module, {})[matrix.parameter] = MoeChange(
                q=self._moe_factor(parameter, names).to(matrix.weight.dtype),
                delta=torch.stack([stack.get(name, none) for name in names], dim=1),
                sides=self._sides[names[0]],
            )
        return {module: MoeFollower(module, own) for module, own in changes.items()}

    def _moe_factor(self, parameter: str, names: Sequence[str]) -> Tensor:
        """The factors of a parameter's matrices as one, ``(e, r, k)``, of which ``factor`` then gives views."""
        if parameter not in self._moe_factors:
            first = self.factor(names[0])
            factors = torch.empty(len(names), *first.shape, device=first.device)
            for index, name in enumerate(names):
                factors[index] = self.factor(name)
                self._factors[name] = factors[index]
            self._moe_factors[parameter] = factors
        return self._moe_factors[parameter]

    def _weight(self, name: str, z: Tensor) -> Tensor:
        """The adapted weight in the layout that the layer stores: another one would take another kernel and round
        differently, and multipliers of ones would no longer be the base."""
        weight: Tensor = self.layers[name].weight  # type: ignore[assignment]
        return adapt_weight(weight, self.factor(name), z - 1, right=self._sides[name].right)


@contextmanager
def _overriding(
    forwards: Mapping[nn.Module, Callable[..., Tensor]], parameters: Mapping[Place, Tensor]
) -> Iterator[None]:
    """Override forwards and parameters of modules. Hooks that others put on the modules still run."""
    kept = {place: getattr(*place) for place in parameters}
    try:
        for place, tensor in parameters.items():
            setattr(*place, nn.Parameter(tensor, requires_grad=False))
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
        for place, own in kept.items():
            setattr(*place, own)


def _forwards_of(followers: Mapping[nn.Module, MoeFollower]) -> dict[nn.Module, Callable[..., Tensor]]:
    return {module: follower.forward for module, follower in followers.items()}


def _forward_merged(layer: nn.Module, delta: Tensor, q: Tensor, sides: Sides, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        y: Tensor = type(layer).forward(layer, x)
        return y
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return merged_linear(x, weight, bias_of(layer), delta, q, sides)


def _changed(stack: Mapping[str, Tensor]) -> list[str]:
    """The matrices that some expert changes, or that a gradient is wanted for. Waits for the device once."""
    if not stack:
        return []
    anything = torch.stack([deltas.any() for deltas in stack.values()]).tolist()
    return [name for name, some in zip(stack, anything, strict=True) if some or stack[name].requires_grad]


def _divisible(delta: Mapping[str, Tensor]) -> dict[str, None]:
    """The matrices all of whose multipliers may be divided by, in order. Waits for the device once."""
    if not delta:
        return {}
    least = torch.stack([(1 + values).abs().min() for values in delta.values()]).tolist()
    return {name: None for name, z in zip(delta, least, strict=True) if not z < SMALLEST_DIVISOR}


def _stack_budget(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else STACK_BUDGET_BYTES


def _layers_of_basis(layers: Mapping[str, Layer], basis: Basis) -> dict[str, Layer]:
    if unknown := sorted(basis.factors.keys() - layers.keys()):
        raise BasisMismatchError(
            f"the model and the basis have different matrices: the basis has '{unknown[0]}', which the model lacks or "
            "which no expert adapts. Add the base model again."
        )
    own = {name: layer for name, layer in layers.items() if name in basis.factors}
    for name, layer in own.items():
        u, _, vh = basis.factors[name]
        if tuple(layer_weight(layer).shape) != (u.shape[0], vh.shape[1]):
            raise BasisMismatchError(
                f"matrix '{name}' is {tuple(layer_weight(layer).shape)}, in the basis {(u.shape[0], vh.shape[1])}."
            )
    return own
