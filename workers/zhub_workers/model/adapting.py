"""Whether experts can be trained on a base and served on it, tried on one layer of each kind before it is decomposed.

An expert is a change of some layers' weights. The slow and certain way to it is to write the changed weights into the
model and to let autograd differentiate by them; each of ``AdaptedModel``'s ways must give the same. The directions
along which a layer is changed need not be its singular vectors for that, only orthonormal, so nothing is decomposed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.basis import Basis
from zhub_workers.model.layers import (
    Layer,
    Place,
    adapted_layers,
    is_transposed,
    layer_weight,
    parameters_with,
    place_of,
)
from zhub_workers.model.svf import adapt_weight

NUMBER = re.compile(r"\.\d+(?=\.|$)")
EXPERTS = 2
MOE_EXPERTS = 4  # of a layer
LARGEST_DELTA = 0.3
# Largest difference over the largest number compared. Rounding gives 1e-5 in float32; a layer that is passed by, or
# counted twice, gives 0.1 and more.
TOLERANCES = {torch.float32: 5e-3, torch.float64: 5e-3}
COARSE_TOLERANCE = 0.1
SEED = 20260

Stack = dict[str, Tensor]  # the deltas of some layers, (EXPERTS, r) each


def try_adapting(base: BaseModel, rows: Sequence[Sequence[int]]) -> str | None:
    """Compare each way of following an expert with weights that are changed by hand; None where all agree.

    Args:
        rows: token ids of equal length, one row for each of EXPERTS.
    """
    layers = adapted_layers(base.model)
    names = names_of_each_kind(layers)
    adapted = AdaptedModel(base, _stand_in(layers, names))
    generator = torch.Generator().manual_seed(SEED)

    def delta(name: str) -> Tensor:
        uniform = torch.rand(EXPERTS, len(adapted.singular_values(name)), generator=generator)
        return (LARGEST_DELTA * (2 * uniform - 1)).to(base.device)

    stack = {name: delta(name) for name in names}
    ids = torch.tensor(rows, device=base.device)
    slow_logits, slow_gradients = _by_hand(adapted, ids, stack)
    tolerance = TOLERANCES.get(base.model.dtype, COARSE_TOLERANCE)
    for what, (logits, gradients) in {
        "in training": _in_training(adapted, ids, stack),
        "with other experts in one batch": _by_row(adapted, ids, stack),
        "merged into the weights": (_merged(adapted, ids, stack), {}),
    }.items():
        if not _alike(logits, slow_logits, tolerance):
            return f"an expert {what} answers otherwise than the weights that it stands for"
        for name, gradient in gradients.items():
            if not _alike(gradient, slow_gradients[name], tolerance):
                return f"the gradient of an expert {what} is not that of the weight of '{name}'"
    return None


def names_of_each_kind(layers: Mapping[str, Layer]) -> list[str]:
    """One layer of each kind, and of MoE experts a few: of one alone, few tokens or none may come by."""
    kinds: dict[str, str] = {}
    for name, layer in layers.items():
        _, index = place_of(layer)
        if index is None:
            kinds[NUMBER.sub(".*", name)] = name
        elif index < MOE_EXPERTS:
            kinds[NUMBER.sub(".*", name.removesuffix(f".{index}")) + f".{index}"] = name
    return list(kinds.values())


def _stand_in(layers: Mapping[str, Layer], names: Sequence[str]) -> Basis:
    """A basis whose square factors are reflections for the layers ``names``, and take no memory for the others."""
    factors = {}
    for name, layer in layers.items():
        m, n = layer_weight(layer).shape
        r = min(m, n)
        nothing = torch.zeros(1)
        u, s, vh = nothing.expand(m, r), nothing.expand(r), nothing.expand(r, n)
        if name in names:
            axis = torch.ones(r, 1) / r**0.5
            reflection = torch.eye(r) - 2 * axis @ axis.T
            u, vh = (u, reflection) if m > n else (reflection, vh)
        factors[name] = (u, s, vh)
    return Basis("", "", factors)


def _by_hand(adapted: AdaptedModel, ids: Tensor, stack: Stack) -> tuple[Tensor, Stack]:
    """Logits of each row under its own expert, and the gradient of ``_loss`` by the deltas, through whole weights."""
    logits, gradients = [], []
    for expert in range(EXPERTS):
        with _changed(adapted, {name: deltas[expert] for name, deltas in stack.items()}) as leaves:
            out = _logits(adapted.base, ids[expert : expert + 1])
            by_leaf = torch.autograd.grad(_loss(out), list(leaves.values()), allow_unused=True)
        logits.append(out.detach())
        by_place = dict(zip(leaves, by_leaf, strict=True))
        gradients.append({name: _by_delta(adapted, name, by_place) for name in stack})
    return torch.cat(logits), {name: torch.stack([of[name] for of in gradients]) for name in stack}


@contextmanager
def _changed(adapted: AdaptedModel, deltas: Mapping[str, Tensor]) -> Iterator[dict[Place, nn.Parameter]]:
    """Put changed weights, with gradients, into the model. Yields the parameters that they are in."""
    changed = parameters_with(adapted.layers, ((name, _changed_weight(adapted, name, deltas[name])) for name in deltas))
    own = {place: getattr(*place) for place in changed}
    leaves = {place: nn.Parameter(tensor) for place, tensor in changed.items()}
    try:
        for place, leaf in leaves.items():
            setattr(*place, leaf)
        yield leaves
    finally:
        for place, parameter in own.items():
            setattr(*place, parameter)


def _changed_weight(adapted: AdaptedModel, name: str, delta: Tensor) -> Tensor:
    layer = adapted.layers[name]
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return adapt_weight(weight, adapted.factor(name), delta, right=_of_input(adapted, name) != is_transposed(layer))


def _of_input(adapted: AdaptedModel, name: str) -> bool:
    m, n = layer_weight(adapted.layers[name]).shape
    return m > n


def _by_delta(adapted: AdaptedModel, name: str, by_place: Mapping[Place, Tensor | None]) -> Tensor:
    """From the gradient of a weight that of its delta, ``(r,)``: ``q_i^T W^T dW q_i``, or ``q_i^T dW W^T q_i``."""
    layer = adapted.layers[name]
    place, index = place_of(layer)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    gradient = by_place[place]
    if gradient is None:
        return torch.zeros(min(weight.shape), device=weight.device)
    w, dw = weight.detach().float(), (gradient if index is None else gradient[index]).float()
    if is_transposed(layer):
        w, dw = w.T, dw.T
    q = adapted.factor(name)
    return ((w @ q) * (dw @ q)).sum(0) if _of_input(adapted, name) else ((q.T @ w) * (q.T @ dw)).sum(1)


def _in_training(adapted: AdaptedModel, ids: Tensor, stack: Stack) -> tuple[Tensor, Stack]:
    logits, gradients = [], []
    for expert in range(EXPERTS):
        leaves = {name: deltas[expert].clone().requires_grad_() for name, deltas in stack.items()}
        with adapted.training(leaves):
            out = _logits(adapted.base, ids[expert : expert + 1])
            gradients.append(_gradients(out, leaves))
        logits.append(out.detach())
    return torch.cat(logits), {name: torch.stack([of[name] for of in gradients]) for name in stack}


def _by_row(adapted: AdaptedModel, ids: Tensor, stack: Stack) -> tuple[Tensor, Stack]:
    leaves = {name: deltas.clone().requires_grad_() for name, deltas in stack.items()}
    with adapted.rows(leaves) as assign:
        assign(range(EXPERTS))
        out = _logits(adapted.base, ids)
        return out.detach(), _gradients(out, leaves)


@torch.no_grad()
def _merged(adapted: AdaptedModel, ids: Tensor, stack: Stack) -> Tensor:
    logits = []
    for expert in range(EXPERTS):
        with adapted.merged({name: 1 + deltas[expert] for name, deltas in stack.items()}):
            logits.append(_logits(adapted.base, ids[expert : expert + 1]))
    return torch.cat(logits)


def _logits(base: BaseModel, ids: Tensor) -> Tensor:
    logits: Tensor = base.model(input_ids=ids, use_cache=False).logits
    return logits


def _loss(logits: Tensor) -> Tensor:
    """A number that every logit moves, each in a way of its own."""
    weights = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(SEED)).to(logits)
    return (logits * weights).sum()


def _gradients(logits: Tensor, leaves: Stack) -> Stack:
    made = torch.autograd.grad(_loss(logits), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), made, strict=True)
    return {name: torch.zeros_like(leaf) if gradient is None else gradient for (name, leaf), gradient in pairs}


def _alike(a: Tensor, b: Tensor, tolerance: float) -> bool:
    scale = max(float(a.abs().max()), float(b.abs().max()))
    return float((a.float() - b.float()).abs().max()) <= tolerance * scale
