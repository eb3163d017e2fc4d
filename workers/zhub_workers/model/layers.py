"""The layers of a model that experts adapt, and their matrices."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zhub_workers.model.moe import MoeMatrix, is_router, moe_matrices

Layer = nn.Module | MoeMatrix  # of one weight, a matrix, and perhaps a bias
Place = tuple[nn.Module, str]  # a module and the name of its parameter


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return the linear layers that an expert adapts, by name, sorted: every nn.Linear and Conv1D but a few.

    Fused projections (GPT-2's ``c_attn``) count as one matrix. Embeddings, tied to the output or not, and the routers
    of mixture-of-experts layers stay as they are.
    """
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in sorted(model.named_modules())
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        # A layer that shares its weight with the output embedding would change it from below.
        and not (output is not None and module.weight is output.weight)
        and not is_router(model, name)
    }


def adapted_layers(model: Any) -> dict[str, Layer]:
    """Return the layers that an expert adapts, by name, sorted: linear layers, and the matrices of MoE experts."""
    layers: dict[str, Layer] = {**linear_layers(model), **moe_matrices(model)}
    return dict(sorted(layers.items()))


def is_transposed(layer: Layer) -> bool:
    """Whether a layer stores its weight ``(in, out)``, as Conv1D does."""
    return layer.transposed if isinstance(layer, MoeMatrix) else isinstance(layer, Conv1D)


def layer_weight(layer: Layer) -> Tensor:
    """Return a layer's weight as ``(m=out, n=in)``: a view where it is stored the other way round."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.T if is_transposed(layer) else weight


def place_of(layer: Layer) -> tuple[Place, int | None]:
    """Return where a layer keeps its weight, and which slice of that parameter it is; None: the whole of it."""
    return ((layer.module, layer.parameter), layer.index) if isinstance(layer, MoeMatrix) else ((layer, "weight"), None)


@torch.no_grad()
def parameters_with(layers: Mapping[str, Layer], weights: Iterable[tuple[str, Tensor]]) -> dict[Place, Tensor]:
    """Return the parameters that hold these weights, given by the names of their layers and as those store them.

    The weights are taken one at a time, so that those of MoE experts are in memory once. MoE experts of the same
    parameter that have none keep their own.
    """
    made: dict[Place, Tensor] = {}
    for name, weight in weights:
        place, index = place_of(layers[name])
        if index is None:
            made[place] = weight
            continue
        if place not in made:
            made[place] = getattr(*place).detach().clone()
        made[place][index] = weight
    return made
