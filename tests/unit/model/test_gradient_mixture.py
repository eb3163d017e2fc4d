"""Slopes of the loss along experts, against differences of losses that are computed one by one."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from zhub_workers.compute.group import ComputeGroup
from zhub_workers.compute.losses import NextToken
from zhub_workers.compute.requests import Differentiate
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import SvfAdapter
from zhub_workers.model.gradient_mixture import loss_slopes, mixture_weights
from zhub_workers.model.mixing import Mixer
from zhub_workers.model.rollout import token_logprobs

Load = Callable[[str], AdaptedModel]
PROMPTS, ANSWERS = [[3, 10, 11, 4], [3, 20, 4]], [[5, 6], [7, 8, 9]]
TOKENS = sum(map(len, ANSWERS))
STEP = 1e-2


def expert_of(adapted: AdaptedModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factors = adapted.basis.factors.items()
    return {name: 1 + 0.3 * torch.randn(len(s), generator=generator) for name, (_, s, _) in factors}


def slopes_of(adapted: AdaptedModel, mixer: Mixer) -> Tensor:
    """As a search asks for them: one backward over all shots."""
    adapter = SvfAdapter(adapted, list(mixer.deltas), sigmoid=False)
    with ComputeGroup().join(adapter, lambda: False) as member:
        request = Differentiate(adapter.initial(0), PROMPTS, ANSWERS, NextToken(token_count=TOKENS))
        return loss_slopes(mixer, member.run(request).values)


@torch.no_grad()
def loss_at(adapted: AdaptedModel, expert: Mapping[str, Tensor], weight: float, only: Sequence[str]) -> float:
    """The mean over the answers' tokens, one shot after the other; the expert is followed in the matrices ``only``."""
    with adapted.merged({name: 1 + weight * (expert[name] - 1) for name in only}):
        logprobs = [token_logprobs(adapted.base, [p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    return -sum(float(of_shot.sum()) for of_shot in logprobs) / TOKENS


def test_a_slope_is_the_change_of_the_loss_with_the_experts_weight_in_its_group(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    experts = [expert_of(adapted, seed) for seed in range(2)]
    mixer = Mixer(experts, "layer", "cpu")
    slopes = slopes_of(adapted, mixer)
    assert slopes.shape == (2, len(mixer.groups)) and len(mixer.groups) > 1
    for k, expert in enumerate(experts):
        for group in range(len(mixer.groups)):
            only = [name for name in expert if mixer.group(name) == group]
            up, down = (loss_at(adapted, expert, weight, only) for weight in (STEP, -STEP))
            assert float(slopes[k, group]) == pytest.approx((up - down) / (2 * STEP), rel=0.05, abs=1e-3)
    assert float(slopes.abs().max()) > 1e-3, "the experts must matter for this to mean anything"


def test_the_slopes_of_groups_add_up_to_that_of_all_matrices(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    experts = [expert_of(adapted, seed) for seed in range(2)]
    of_all = slopes_of(adapted, Mixer(experts, "global", "cpu"))
    of_matrices = slopes_of(adapted, Mixer(experts, "matrix", "cpu"))
    assert torch.allclose(of_all[:, 0], of_matrices.sum(1), rtol=1e-4, atol=1e-6)


def test_a_matrix_that_an_expert_leaves_out_changes_nothing(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    whole = expert_of(adapted, 0)
    name = next(iter(whole))
    rest = {other: z for other, z in whole.items() if other != name}
    mixer = Mixer([whole, {name: whole[name]}, rest], "global", "cpu")
    of_whole, of_one, of_rest = slopes_of(adapted, mixer)[:, 0].tolist()
    assert of_whole == pytest.approx(of_one + of_rest, rel=1e-4)


@pytest.mark.parametrize(
    "slopes,weights", [([-3.0, 1.0, -1.0], [0.75, 0.0, 0.25]), ([0.5, 2.0], [0.0, 0.0]), ([-2.0], [1.0])]
)
def test_only_experts_that_lower_the_loss_are_mixed(slopes: list[float], weights: list[float]) -> None:
    assert mixture_weights(torch.tensor(slopes).unsqueeze(1))[:, 0].tolist() == pytest.approx(weights)


def test_each_group_has_weights_of_its_own() -> None:
    slopes = torch.tensor([[-1.0, 2.0], [-3.0, -4.0]])
    assert mixture_weights(slopes).tolist() == [[0.25, 0.0], [0.75, 1.0]]
