"""Mixture-of-experts layers: the matrices of their MoE experts, and their forward with each product made by the caller.

An *MoE expert* is one of the small networks among which a router divides the tokens, and no expert of zhub.
Transformers keeps the matrices of all MoE experts of a layer in 3-D parameters of one module. Its interface for other
implementations of that module's forward (``transformers.integrations.moe``) says what a forward needs to know: the
attributes that ``use_experts_implementation`` sets. Llama 4 is outside of that interface.

Routers stay as they are: which MoE experts read a token is the base's own choice, made on what an expert has made of
the token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

from zhub_workers.model.projected import Sides

ROUTERS = frozenset({"router", "router_gate", "shared_expert_gate"})


@dataclass(frozen=True, eq=False)
class MoeMatrix:
    """One matrix of one MoE expert: a slice of a 3-D parameter of ``module``, with a weight like a linear layer.

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


@dataclass(frozen=True)
class Routing:
    """Which tokens a layer gave to which of its MoE experts: an entry for each pair of them, by MoE expert.

    Attributes:
        indices: ``(s,)``, the MoE expert of each entry, ascending.
        tokens: ``(s,)``, the token of each entry, ascending within an MoE expert.
        ends: ``(e,)`` int32, where the entries of each MoE expert end.
        token_count: of the batch, row by row, whether they have entries or not.
    """

    indices: Tensor
    tokens: Tensor
    ends: Tensor
    token_count: int

    @staticmethod
    def of(indices: Tensor, tokens: Tensor, *, moe_experts: int, token_count: int) -> "Routing":
        """Of entries that are sorted by MoE expert."""
        numbers = torch.arange(moe_experts, device=indices.device)
        ends = torch.searchsorted(indices, numbers, right=True).to(torch.int32)
        return Routing(indices, tokens, ends, token_count)


@dataclass(frozen=True)
class MoeChange:
    """What experts of zhub change in a 3-D parameter of MoE experts.

    Attributes:
        q: the smaller factors, ``(e, r, k)``, one singular direction a column, in the dtype of the parameter.
        delta: ``z - 1`` of K experts, ``(K, e, k)``, float32; zeros add exactly zero.
        sides: where these factors stand.
    """

    q: Tensor
    delta: Tensor
    sides: Sides


def moe_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold MoE experts in 3-D parameters and whose forward is known, by name."""
    return {name: module for name, module in model.named_modules() if _is_known(module)}


def moe_matrices(model: nn.Module) -> dict[str, MoeMatrix]:
    """The matrices of all MoE experts of ``moe_modules``: ``model.layers.0.mlp.experts.gate_up_proj.3``."""
    return {
        f"{name}.{parameter}.{index}": MoeMatrix(module, parameter, index, _is_transposed(module))
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


class MoeFollower:
    """The forward of a module of ``moe_modules`` in a batch whose rows follow experts of zhub.

    A token follows the expert of the row that it stands in, whichever MoE experts it is routed to. The factored form
    of ``zhub_workers.model.svf`` for all MoE experts at once, in transformers' own grouped products: a token's few MoE
    experts are read by too few tokens for weights of their own to pay. A backward reaches the deltas.
    """

    def __init__(self, module: nn.Module, changes: Mapping[str, MoeChange]) -> None:
        self._module, self._changes = module, changes
        forward = _Llama4Forward if isinstance(module, Llama4TextExperts) else _RoutedForward
        self.forward: Callable[..., Tensor] = forward(module, self._product)
        self._owners: Tensor | None = None

    def assign(self, owners: Tensor) -> None:
        """Say whose each row of the batch is, ascending."""
        self._owners = owners

    def _product(self, parameter: str, routing: Routing, x: Tensor) -> Tensor:
        """Of entries ``(s, n)`` with the parameter's matrices: ``(s, m)``."""
        weights, bias = getattr(self._module, parameter), getattr(self._module, f"{parameter}_bias", None)
        change = self._changes.get(parameter)
        if change is not None and change.sides.of_input:
            x = x + self._added(change, routing, x)
        y = F.grouped_mm(x, weights if _is_transposed(self._module) else weights.mT, offs=routing.ends)
        if change is not None and not change.sides.of_input:
            y = y + self._added(change, routing, y)
        return y if bias is None else y + bias[routing.indices]

    def _added(self, change: MoeChange, routing: Routing, x: Tensor) -> Tensor:
        if self._owners is None:
            raise RuntimeError("no row has an expert yet: call assign(owners) before the first forward")
        tokens_per_row = routing.token_count // len(self._owners)
        owners = self._owners[routing.tokens // tokens_per_row]
        scaled = F.grouped_mm(x, change.q, offs=routing.ends) * change.delta[owners, routing.indices]
        return F.grouped_mm(scaled.to(x.dtype), change.q.mT, offs=routing.ends)


# Of a parameter's name, the entries, and their inputs (s, n): the outputs (s, m).
Product = Callable[[str, Routing, Tensor], Tensor]


class _RoutedForward:
    """The forward of transformers' interface, step by step as its ``grouped_mm_experts_forward`` takes them."""

    def __init__(self, module: Any, product: Product) -> None:
        self._module, self._product = module, product

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Of tokens ``(t, n)``, the MoE experts of each ``(t, k)`` and their weights ``(t, k)``: ``(t, n)``."""
        module, count, k = self._module, len(hidden_states), top_k_index.shape[-1]
        up, down = _projections(module)
        indices, order = top_k_index.reshape(-1).sort(stable=True)
        routing = Routing.of(indices, order // k, moe_experts=len(getattr(module, up)), token_count=count)
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
        moe_experts = self._module.num_experts
        count = len(hidden_states) // moe_experts
        entries = hidden_states.any(dim=-1).nonzero().squeeze(-1)
        routing = Routing.of(entries // count, entries % count, moe_experts=moe_experts, token_count=count)
        gate, up = self._product("gate_up_proj", routing, hidden_states[entries]).chunk(2, dim=-1)
        out = self._product("down_proj", routing, up * self._module.act_fn(gate))
        return torch.zeros_like(hidden_states).index_put((entries,), out)


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
