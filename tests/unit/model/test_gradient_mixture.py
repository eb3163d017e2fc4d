"""Slopes of the loss along experts, against differences of losses that are computed one by one."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.gradient_mixture import loss_slopes, mixture_weights
from zhub_workers.model.rollout import token_logprobs

Load = Callable[[str], AdaptedModel]
SHOTS = [([3, 10, 11, 4], [5, 6]), ([3, 20, 4], [7, 8, 9])]
STEP = 1e-2


def expert_of(adapted: AdaptedModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factors = adapted.basis.factors.items()
    return {name: 1 + 0.3 * torch.randn(len(s), generator=generator) for name, (_, s, _) in factors}


@torch.no_grad()
def loss_at(adapted: AdaptedModel, expert: Mapping[str, Tensor], weight: float) -> float:
    """The mean over the shots of the mean over each answer's tokens."""
    with adapted.merged({name: 1 + weight * (z - 1) for name, z in expert.items()}):
        losses = []
        for prompt, answer in SHOTS:
            logprobs, _ = token_logprobs(adapted.base, [prompt], [answer])
            losses.append(-float(logprobs.mean()))
    return sum(losses) / len(losses)


def test_a_slope_is_the_change_of_the_loss_with_the_experts_weight(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    experts = [expert_of(adapted, seed) for seed in range(3)]
    expected = [(loss_at(adapted, e, STEP) - loss_at(adapted, e, -STEP)) / (2 * STEP) for e in experts]
    slopes = loss_slopes(adapted, experts, SHOTS)
    assert slopes.tolist() == pytest.approx(expected, rel=0.05, abs=1e-3)
    assert min(map(abs, expected)) > 1e-3, "the experts must matter for this to mean anything"


def test_a_matrix_that_an_expert_leaves_out_changes_nothing(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    whole = expert_of(adapted, 0)
    name = next(iter(whole))
    rest = {other: z for other, z in whole.items() if other != name}
    of_whole, of_one, of_rest = loss_slopes(adapted, [whole, {name: whole[name]}, rest], SHOTS).tolist()
    assert of_whole == pytest.approx(of_one + of_rest, rel=1e-4)


def test_the_base_is_the_base_afterwards(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    before, _ = token_logprobs(adapted.base, [SHOTS[0][0]], [SHOTS[0][1]])
    loss_slopes(adapted, [expert_of(adapted, 0)], SHOTS)
    after, _ = token_logprobs(adapted.base, [SHOTS[0][0]], [SHOTS[0][1]])
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "slopes,weights", [([-3.0, 1.0, -1.0], [0.75, 0.0, 0.25]), ([0.5, 2.0], [0.0, 0.0]), ([-2.0], [1.0])]
)
def test_only_experts_that_lower_the_loss_are_mixed(slopes: list[float], weights: list[float]) -> None:
    assert mixture_weights(torch.tensor(slopes)) == pytest.approx(weights)
