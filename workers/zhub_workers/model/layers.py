"""The layers of a model that experts adapt, and their matrices."""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zhub_workers.model.moe import MoeMatrix, is_router, moe_matrices

Layer = nn.Module | MoeMatrix  # of one weight, a matrix, and perhaps a bias


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
