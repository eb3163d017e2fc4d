"""The layers of a model that experts adapt, and their matrices."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zhub_workers.model.moe import MoeMatrix, is_router, moe_matrices

Layer = nn.Module | MoeMatrix  # of one weight, a matrix, and perhaps a bias
# Mamba's step size: its kernels take the weight, and no expert that changes what the layer computes is heard.
READ_PAST_THE_LAYER = ("dt_proj",)
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
Place = tuple[nn.Module, str]  # a module and the name of its parameter


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return the linear layers that an expert adapts, by name, sorted: every nn.Linear and Conv1D but a few.

    Fused projections (GPT-2's ``c_attn``) count as one matrix. Embeddings, tied to the output or not, stay as they are,
    and so do the routers of mixture-of-experts layers, and any layer that is more than a matrix product.
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
        and name.rpartition(".")[2] not in READ_PAST_THE_LAYER
        and _is_linear(module)
    }


@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    """Whether a layer gives what nn.Linear or Conv1D would; only a subclass may not."""
    if type(module) in (nn.Linear, Conv1D):
        return True
    own: Any = Conv1D if isinstance(module, Conv1D) else nn.Linear
    x = torch.linspace(-1, 1, layer_weight(module).shape[1], dtype=module.weight.dtype, device=module.weight.device)  # type: ignore[arg-type]
    try:
        y = module(x.expand(1, 2, -1))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    expected = own.forward(module, x.expand(1, 2, -1))
    return (
        isinstance(y, Tensor) and y.shape == expected.shape and (y.is_meta or torch.allclose(y, expected, 1e-3, 1e-3))
    )


def adapted_layers(model: Any) -> dict[str, Layer]:
    """Return the layers that an expert adapts, by name, sorted: linear layers, and the matrices of MoE experts."""
    layers: dict[str, Layer] = {**linear_layers(model), **moe_matrices(model)}
    return dict(sorted(layers.items()))


def unreached_weights(model: Any) -> list[str]:
    """The names of 3-D weights, as MoE experts have, that experts cannot adapt; ``*`` is any number."""
    reached = {id(getattr(layer.module, layer.parameter)) for layer in moe_matrices(model).values()}
    return sorted(
        {
            NUMBER.sub("*", name)
            for name, parameter in model.named_parameters()
            # The kernels of convolutions have three axes too, one of them of length one.
            if parameter.ndim == 3 and min(parameter.shape[1:]) > 1 and id(parameter) not in reached
        }
    )


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
