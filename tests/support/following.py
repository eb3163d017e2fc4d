"""What tests do with adapted models: random experts, the logits under them, and how far two tensors are apart."""

import torch
from torch import Tensor

from zhub_workers.model.adapted import AdaptedModel

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [7, 7, 8, 40]])


@torch.no_grad()
def logits(adapted: AdaptedModel, ids: Tensor = IDS) -> Tensor:
    found: Tensor = adapted.base.model(ids).logits
    return found


def random_delta(adapted: AdaptedModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(zeros.shape, generator=generator) for name, zeros in adapted.zero_delta().items()}


def as_z(delta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 1 + values for name, values in delta.items()}


def error(found: Tensor | None, expected: Tensor) -> float:
    """Largest error over the largest entry."""
    assert found is not None
    difference = found.detach().double() - expected.detach().double()
    return float(difference.abs().max() / expected.detach().abs().max())
