"""What a base takes, counted on its shapes: ``python -m zhub_workers.compute.sizes CONFIG_JSON_OR_DIR [RANK]``.

Each number is of the tensors that decomposition, training and serving make, or of the formula by which they choose the
size of a batch. A process of its own, because whoever asks imports no torch.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from zhub.errors import UnsupportedModelError
from zhub.registry.model_sizes import ModelSizes
from zhub_workers.compute.batches import activation_bytes_per_token, cache_bytes_per_token
from zhub_workers.model.base_model import model_of_config
from zhub_workers.model.layers import adapted_layers, layer_weight

ROW_TOKENS = 1024  # of a prompt with its answer
FACTOR_BYTES = torch.float32.itemsize


def sizes_of(
    model: Any, stored_as: torch.dtype, *, rank: int | None = None, row_tokens: int = ROW_TOKENS
) -> ModelSizes:
    """Count a model, which may be on the device ``meta``, in the dtype that it has there; its files have another.

    ``rank``: that its basis has, None for a whole one.
    """
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}.values()
    shapes = [tuple(layer_weight(layer).shape) for layer in adapted_layers(model).values()]

    def directions(m: int, n: int) -> int:
        return min(m, n) if rank is None else min(m, n, rank)

    return ModelSizes(
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrices=len(shapes),
        adapted_parameters=sum(m * n for m, n in shapes),
        multipliers=sum(directions(m, n) for m, n in shapes),
        checkpoint_bytes=sum(tensor.numel() * stored_as.itemsize for tensor in tensors),
        basis_bytes=FACTOR_BYTES * sum((m + 1 + n) * directions(m, n) for m, n in shapes),
        weights_bytes=sum(tensor.nbytes for tensor in tensors),
        factors_bytes=FACTOR_BYTES * sum((min(m, n) + 1) * directions(m, n) for m, n in shapes),
        merged_bytes=sum(layer_weight(layer).nbytes for layer in adapted_layers(model).values()),
        decomposition_bytes=max(decomposition_bytes(m, n) for m, n in shapes),
        row_tokens=row_tokens,
        activations_bytes=int(activation_bytes_per_token(model) * row_tokens),
        cache_bytes=cache_bytes_per_token(model) * row_tokens,
    )


def decomposition_bytes(m: int, n: int) -> int:
    """Of ``torch.linalg.svd`` of one matrix: it and LAPACK's copy, the factors, and the workspace of ``gesdd``.

    The workspace is 4 r² + 7 r numbers where m is much greater than n, and less otherwise (LAPACK's dgesdd.f).
    """
    r = min(m, n)
    return FACTOR_BYTES * (2 * m * n + (m + 1 + n) * r + 4 * r * r + 7 * r)


def main() -> None:
    logging.set_verbosity_error()
    rank = int(sys.argv[2]) if len(sys.argv) > 2 else None
    try:
        print(sizes_of(*model_of_config(Path(sys.argv[1])), rank=rank).model_dump_json())  # noqa: T201  (its answer)
    except UnsupportedModelError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
