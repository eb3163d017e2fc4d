"""A base model whose linear layers can follow an expert, or one expert per row, and go back to the base.

Four states of one loaded model. Outside of every context it is the base, untouched. Inside,

- ``merged(z)`` swaps in weights made once: fastest, one expert for the whole batch, no gradient;
- ``training(delta)`` makes the weights anew in each forward, so a backward reaches ``delta``;
- ``rows(delta)`` leaves the weights and adds each row's own expert to the layer's output.

They agree up to float rounding, and with a delta of zeros each gives the base's logits bit for bit. One state at a
time: the model is one object, and two experts cannot have it at once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from zhub.errors import BasisMismatchError
from zhub_workers.base_model import BaseModel, layer_weight, linear_layers
from zhub_workers.basis import Basis, check_z
from zhub_workers.svf import adapt_weight, factored_delta

Factors = tuple[Tensor, Tensor, Tensor]


class AdaptedModel:
    """A base model together with its basis, on the base's device.

    Raises:
        BasisMismatchError: the basis was made from other matrices than this model has.
    """

    def __init__(self, base: BaseModel, basis: Basis) -> None:
        self.base = base
        self.basis = basis
        self.layers = linear_layers(base.model)
        _check_layers(self.layers, basis)
        self._factors: dict[str, Factors] = {}
        for name, (u, s, vh) in basis.factors.items():
            self._factors[name] = (u.to(base.device), s.to(base.device), vh.to(base.device))
        self._state = "base"

    def zero_delta(self) -> dict[str, Tensor]:
        """A delta of zeros, float32, on the model's device: the base itself."""
        return {name: torch.zeros_like(s) for name, (_, s, _) in self._factors.items()}

    @contextmanager
    def merged(self, z: Mapping[str, Tensor]) -> Iterator[None]:
        """Give every layer the weight of one expert, and its own weight back at the end.

        Raises:
            BasisMismatchError, ArtifactError: z does not fit, see ``check_z``.
        """
        check_z(dict(z), self.basis)
        with self._entered("merged"):
            kept = {name: layer.weight for name, layer in self.layers.items()}
            try:
                with torch.no_grad():
                    for name, layer in self.layers.items():
                        delta = z[name].to(self.base.device) - 1
                        layer.weight = nn.Parameter(_stored_weight(layer, self._factors[name], delta), False)
                yield
            finally:
                for name, layer in self.layers.items():
                    layer.weight = kept[name]

    @contextmanager
    def training(self, delta: Mapping[str, Tensor]) -> Iterator[None]:
        """Let each forward build its weights from ``delta``, whose tensors require gradients: ``(r,)`` a matrix."""
        with self._entered("training"), self._forwards(_forward_training, delta):
            yield

    @contextmanager
    def rows(self, delta: Mapping[str, Tensor]) -> Iterator[Callable[[Tensor], None]]:
        """Let batch row ``b`` follow ``delta[name][b]``; each matrix has ``(b, r)`` numbers, zeros are the base.

        Yields a function that keeps only the given rows, for callers that drop finished rows from the batch.
        A matrix that no row changes costs nothing.
        """
        changed = {name: rows.to(self.base.device) for name, rows in delta.items() if bool(rows.any())}

        def keep(indices: Tensor) -> None:
            for name in changed:
                changed[name] = changed[name][indices]

        with self._entered("rows"), self._forwards(_forward_rows, changed):
            yield keep

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
        self,
        forward: Callable[[nn.Module, Factors, str, Mapping[str, Tensor], Tensor], Tensor],
        delta: Mapping[str, Tensor],
    ) -> Iterator[None]:
        """Override the forward of each layer that has a delta. Hooks that others put on the module still run."""
        layers = [self.layers[name] for name in delta]
        try:
            for name in delta:
                layer = self.layers[name]
                layer.forward = partial(forward, layer, self._factors[name], name, delta)
            yield
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)


def _forward_training(layer: nn.Module, factors: Factors, name: str, delta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    weight = _stored_weight(layer, factors, delta[name])
    if isinstance(layer, Conv1D):
        return torch.addmm(layer.bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], layer.nf)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return F.linear(x, weight, bias)


def _forward_rows(layer: nn.Module, factors: Factors, name: str, delta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    rows = delta[name]
    y: Tensor = type(layer).forward(layer, x)
    # Some architectures flatten (rows, tokens) into one axis before a layer.
    added = factored_delta(x.reshape(rows.shape[0], -1, x.shape[-1]), *factors, rows)
    return y + added.reshape(y.shape)


def _stored_weight(layer: nn.Module, factors: Factors, delta: Tensor) -> Tensor:
    """The adapted weight in the layout that the layer stores, contiguous.

    Transposing the factors instead of the product keeps the memory layout, and with it the matrix kernel that
    the base uses: another kernel rounds differently, and a delta of zeros would no longer be the base.
    """
    u, s, vh = factors
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return (
        adapt_weight(weight, vh.T, s, u.T, delta)
        if isinstance(layer, Conv1D)
        else adapt_weight(weight, u, s, vh, delta)
    )


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
