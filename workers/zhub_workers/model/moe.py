"""Mixture-of-experts layers: the matrices of their MoE experts, and their forward with each product made by the caller.

An *MoE expert* is one of the small networks among which a router divides the tokens, and no expert of zhub.
Transformers keeps the matrices of all MoE experts of a layer in 3-D parameters of one module. Its interface for other
implementations of that module's forward (``transformers.integrations.moe``) says what a forward needs to know: the
attributes that ``use_experts_implementation`` sets. Llama 4 is outside of that interface.

Routers stay as they are: which MoE experts read a token is the base's own choice, made on what an expert has made of
the token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

from zhub_workers.model.projected import Blocks

ROUTERS = frozenset({"router", "router_gate", "shared_expert_gate"})


@dataclass(frozen=True, eq=False)
class MoeMatrix:
    """One matrix of one MoE expert: a slice of a 3-D parameter of ``module``; of weight and bias like a linear layer.

    Fused gate and up projections count as one matrix. ``transposed``: stored ``(in, out)``, as Conv1D does.
    """

    module: nn.Module
    parameter: str
    index: int
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """As it is stored, in the module's present parameter."""
        every: Tensor = getattr(self.module, self.parameter)
        return every[self.index]

    @property
    def bias(self) -> Tensor | None:
        every: Tensor | None = getattr(self.module, f"{self.parameter}_bias", None)
        return None if every is None else every[self.index]

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``. The products that transformers makes: other kernels round differently."""
        y = x @ self.weight if self.transposed else F.linear(x, self.weight)
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Routing:
    """Which tokens a layer gave to which of its MoE experts: an entry for each pair of them, by MoE expert.

    Attributes:
        indices: MoE experts with tokens, ascending.
        sizes: entries of each.
        tokens: ``(s,)``, the token of each entry, ascending within an MoE expert.
        token_count: of the batch, row by row, whether they have entries or not.
    """

    indices: Sequence[int]
    sizes: Sequence[int]
    tokens: Tensor
    token_count: int

    def shares(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each MoE expert with tokens, and its entries of ``(s, ...)``."""
        return zip(self.indices, torch.split(x, list(self.sizes)), strict=True)


# Of a parameter's name, the entries, and their inputs (s, n): the outputs (s, m).
Product = Callable[[str, Routing, Tensor], Tensor]
# Of a parameter's name and an index: the product with that matrix in another form, (s, n) to (s, m).
Forms = Mapping[tuple[str, int], Callable[[Tensor], Tensor]]


def moe_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold MoE experts in 3-D parameters and whose forward is known, by name."""
    return {name: module for name, module in model.named_modules() if _is_known(module)}


def moe_matrices(model: nn.Module) -> dict[str, MoeMatrix]:
    """The matrices of all MoE experts of ``moe_modules``: ``model.layers.0.mlp.experts.gate_up_proj.3``."""
    return {
        f"{name}.{parameter}.{index}": _matrix(module, parameter, index)
        for name, module in moe_modules(model).items()
        for parameter in _projections(module)
        for index in range(len(getattr(module, parameter)))
    }


def is_router(model: nn.Module, name: str) -> bool:
    """Whether the module of this name decides, or is part of what decides, which MoE experts read a token."""
    path, above = name.split("."), model
    for child in path:
        if child in ROUTERS or (child == "gate" and hasattr(above, "experts")):
            return True
        above = getattr(above, child)
    return False


def followed_forward(module: nn.Module, forms: Forms, *, own_without_gradient: bool) -> Callable[..., Tensor]:
    """A forward for a module of ``moe_modules`` some of whose matrices have another form; the others are as they are.

    Args:
        own_without_gradient: the module's own forward does the same, and is taken where no gradient is wanted.
    """

    def product(parameter: str, routing: Routing, x: Tensor) -> Tensor:
        parts = [
            forms.get((parameter, index), _matrix(module, parameter, index).forward)(share)
            for index, share in routing.shares(x)
        ]
        return torch.cat(parts)

    forward = _forward_with(module, product)

    def choose(*inputs: Tensor) -> Tensor:
        if own_without_gradient and not torch.is_grad_enabled():
            y: Tensor = type(module).forward(module, *inputs)
            return y
        return forward(*inputs)

    return choose


class RowsForm(Protocol):
    """A matrix in a form in which each row of its input follows one of K experts of zhub."""

    def assign(self, owners: Tensor, blocks: Blocks) -> None:
        """Say whose each row of the next input is, ascending."""

    def forward(self, x: Tensor) -> Tensor:
        """``(rows, n)`` to ``(rows, m)``."""


class RowsMoe:
    """The forward of a module of ``moe_modules`` in a batch whose rows follow different experts of zhub.

    To a matrix each token that was routed to it is a row, and follows the expert of the row that it stands in.
    """

    def __init__(self, module: nn.Module, forms: Mapping[tuple[str, int], RowsForm]) -> None:
        self._module, self._forms = module, forms
        self.forward = _forward_with(module, self._product)
        self._owners: Tensor | None = None

    def assign(self, owners: Tensor, blocks: Blocks) -> None:
        """Say whose each row of the batch is, ascending."""
        self._owners = owners

    def _product(self, parameter: str, routing: Routing, x: Tensor) -> Tensor:
        if self._owners is None:
            raise RuntimeError("no row has an expert yet: call assign(owners) before the first forward")
        tokens_per_row = routing.token_count // len(self._owners)
        owners = self._owners[routing.tokens // tokens_per_row]
        numbers = iter(owners.tolist())
        parts = []
        for (index, share), own in zip(routing.shares(x), torch.split(owners, list(routing.sizes)), strict=True):
            blocks = Blocks.of(list(islice(numbers, len(share))))
            form = self._forms.get((parameter, index))
            if form is None:
                parts.append(_matrix(self._module, parameter, index).forward(share))
            else:
                form.assign(own, blocks)
                parts.append(form.forward(share))
        return torch.cat(parts)


def _forward_with(module: nn.Module, product: Product) -> Callable[..., Tensor]:
    return _Llama4Forward(module, product) if isinstance(module, Llama4TextExperts) else _RoutedForward(module, product)


def _matrix(module: nn.Module, parameter: str, index: int) -> MoeMatrix:
    return MoeMatrix(module, parameter, index, _is_transposed(module))


class _RoutedForward:
    """The forward of transformers' interface, step by step as its ``grouped_mm_experts_forward`` takes them."""

    def __init__(self, module: Any, product: Product) -> None:
        self._module, self._product = module, product

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Of tokens ``(t, n)``, the MoE experts of each ``(t, k)`` and their weights ``(t, k)``: ``(t, n)``."""
        module, count, k = self._module, len(hidden_states), top_k_index.shape[-1]
        indices, order = top_k_index.reshape(-1).sort(stable=True)
        routing = _routing(indices, order // k, count)
        up, down = _projections(module)
        inner = self._product(up, routing, hidden_states[routing.tokens])
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        out = self._product(down, routing, inner)
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        weighted = (out * top_k_weights.reshape(-1)[order].unsqueeze(-1))[_inverse(order)]
        return weighted.view(count, k, -1).sum(dim=1).to(hidden_states.dtype)


class _Llama4Forward:
    """Llama 4's: every MoE expert gets every token times its router score, which is zero where it was not chosen.

    Zeros come out as zeros, so the tokens of zeros are left out.
    """

    def __init__(self, module: Any, product: Product) -> None:
        self._module, self._product = module, product

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """``(e t, n)`` to ``(e t, n)``, MoE expert by MoE expert."""
        count = len(hidden_states) // self._module.num_experts
        entries = hidden_states.any(dim=-1).nonzero().squeeze(-1)
        routing = _routing(entries // count, entries % count, count)
        gate, up = self._product("gate_up_proj", routing, hidden_states[entries]).chunk(2, dim=-1)
        out = self._product("down_proj", routing, up * self._module.act_fn(gate))
        return torch.zeros_like(hidden_states).index_put((entries,), out)


def _routing(indices: Tensor, tokens: Tensor, token_count: int) -> Routing:
    """Of entries sorted by MoE expert. Waits for the device once."""
    sizes = {index: size for index, size in enumerate(indices.bincount().tolist()) if size}
    return Routing(list(sizes), list(sizes.values()), tokens, token_count)


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _is_known(module: nn.Module) -> bool:
    by_interface = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))
    return isinstance(module, Llama4TextExperts) or by_interface


def _is_transposed(module: Any) -> bool:
    return isinstance(module, Llama4TextExperts) or bool(module.is_transposed)


def _projections(module: Any) -> tuple[str, str]:
    """The names of a module's 3-D parameters, in the order in which a token goes through them."""
    fused = isinstance(module, Llama4TextExperts) or module.has_gate
    return "gate_up_proj" if fused else "up_proj", "down_proj"
