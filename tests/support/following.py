"""What tests do with adapted models: random experts, the logits under them, and how far two tensors are apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.changes import Change
from zhub_workers.model.row_changes import following_rows

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [7, 7, 8, 40]])


@torch.no_grad()
def logits(adapted: AdaptedModel, ids: Tensor = IDS) -> Tensor:
    found: Tensor = adapted.base.model(ids).logits
    return found


@torch.no_grad()
def changed_logits(adapted: AdaptedModel, change: Change) -> Tensor:
    """Of ``IDS``, whose rows all follow the change."""
    with following_rows(adapted, [change]) as assign:
        assign([0] * len(IDS))
        return logits(adapted)


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


@dataclass(frozen=True)
class OfExpert:
    """One expert's rows of a batch, and the same rows alone; pairs of gradients of each matrix's delta likewise."""

    logits: Tensor
    alone: Tensor
    gradients: list[tuple[Tensor | None, Tensor | None]]


def side_by_side(adapted: AdaptedModel, ids: Tensor, owners: Sequence[int]) -> Iterator[OfExpert]:
    """Three random experts in one batch, row by row of ``owners``, each compared with itself alone."""
    experts = [random_delta(adapted, seed) for seed in range(3)]
    stack = {n: torch.stack([expert[n] for expert in experts]).requires_grad_() for n in experts[0]}
    with adapted.rows(stack) as assign:
        assign(owners)
        together = adapted.base.model(ids).logits
        together.square().sum().backward()
    for owner, expert in enumerate(experts):
        rows = torch.tensor(owners) == owner
        alone = {name: values.requires_grad_() for name, values in expert.items()}
        with adapted.training(alone):
            own = adapted.base.model(ids[rows]).logits
            own.square().sum().backward()
        gradients = [(None if stack[n].grad is None else stack[n].grad[owner], v.grad) for n, v in alone.items()]  # type: ignore[index]
        yield OfExpert(together[rows], own, gradients)
