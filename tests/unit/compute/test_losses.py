"""The policy gradient against sums written out sample by sample and token by token."""

import math

import pytest
import torch

from zhub_workers.compute.losses import (
    ADVANTAGES,
    grpo_advantages,
    k3,
    policy_gradient_loss,
    preference_loss,
    reinforce_advantages,
    rloo_advantages,
)


def test_advantages_are_centred_in_their_group_and_keep_their_scale() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.8]])
    expected = [[r - sum(group) / 4 for r in group] for group in rewards.tolist()]
    assert torch.allclose(grpo_advantages(rewards), torch.tensor(expected))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_a_group_rewarded_alike_has_exactly_no_advantage(value: float) -> None:
    assert not grpo_advantages(torch.full((2, 7), value)).any()


def test_the_loss_is_the_mean_over_all_tokens_that_there_are() -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs, reference = -torch.rand(3, 4, generator=generator), -torch.rand(3, 4, generator=generator)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    advantages = torch.tensor([0.5, -1.0, 0.25])
    loss, divergence = policy_gradient_loss(logprobs, advantages, mask, reference=reference, kl_coef=0.3, token_count=7)
    gain = drift = 0.0
    for row in range(3):
        for column in range(int(mask[row].sum())):
            logprob, ref = float(logprobs[row, column]), float(reference[row, column])
            gain += float(advantages[row]) * logprob
            drift += math.exp(ref - logprob) - 1 - (ref - logprob)
    assert float(divergence) == pytest.approx(drift / 7, rel=1e-5)
    assert float(loss) == pytest.approx((-gain + 0.3 * drift) / 7, rel=1e-5)


def test_micro_batches_add_up_to_the_whole_step() -> None:
    logprobs, advantages, mask = -torch.rand(4, 3), torch.randn(4), torch.ones(4, 3)
    whole, _ = policy_gradient_loss(logprobs, advantages, mask, token_count=12)
    halves = [
        policy_gradient_loss(logprobs[part], advantages[part], mask[part], token_count=12)[0]
        for part in (slice(0, 1), slice(1, 4))
    ]
    assert float(sum(halves)) == pytest.approx(float(whole), rel=1e-5)


def test_a_better_answer_becomes_likelier_and_a_worse_one_less_likely() -> None:
    logprobs = torch.full((2, 1), -1.0, requires_grad=True)
    loss, _ = policy_gradient_loss(logprobs, torch.tensor([0.5, -0.5]), torch.ones(2, 1), token_count=2)
    torch.autograd.backward(loss)
    assert logprobs.grad is not None
    assert float(logprobs.grad[0]) < 0 < float(logprobs.grad[1])


def test_k3_averages_to_the_divergence_of_policy_from_base() -> None:
    generator = torch.Generator().manual_seed(2)
    policy, base = torch.randn(6, generator=generator).softmax(0), torch.randn(6, generator=generator).softmax(0)
    exact = sum(float(p) * math.log(float(p) / float(q)) for p, q in zip(policy, base, strict=True))
    estimates = k3(policy.log(), base.log())
    assert (estimates >= 0).all()
    assert float((policy * estimates).sum()) == pytest.approx(exact, rel=1e-4)


def test_a_penalty_on_an_unmoved_policy_has_no_gradient() -> None:
    logprobs = torch.tensor([[-0.5, -2.0]], requires_grad=True)
    loss, divergence = policy_gradient_loss(
        logprobs,
        torch.zeros(1),
        torch.ones(1, 2),
        reference=logprobs.detach().clone(),
        kl_coef=1.0,
        token_count=2,
    )
    torch.autograd.backward(loss)
    assert float(divergence) == 0 and logprobs.grad is not None and not logprobs.grad.any()


def test_rloo_compares_each_sample_with_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5]])
    expected = [[1.0 - 0.25, 0.0 - 0.75, 0.5 - 0.5]]
    assert torch.allclose(rloo_advantages(rewards), torch.tensor(expected))


def test_the_papers_reward_is_one_or_minus_one_without_a_baseline() -> None:
    assert reinforce_advantages(torch.tensor([[1.0, 1.0], [0.0, 0.0]])).tolist() == [[1.0, 1.0], [-1.0, -1.0]]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_group_without_variance_teaches_nothing(algorithm: str) -> None:
    assert not ADVANTAGES[algorithm](torch.full((3, 7), 1 / 3)).any()


def test_a_clipped_ratio_no_longer_pulls_beyond_its_range() -> None:
    sampled = torch.full((2, 1), -1.0)
    logprobs = torch.tensor([[-0.5], [-1.5]], requires_grad=True)  # ratios of 1.65 and 0.61
    loss, _ = policy_gradient_loss(
        logprobs, torch.tensor([1.0, -1.0]), torch.ones(2, 1), token_count=2, sampled=sampled, clip_ratio=0.2
    )
    torch.autograd.backward(loss)
    assert logprobs.grad is not None and not logprobs.grad.any()
    assert loss.item() == pytest.approx(-(1.2 - 0.8) / 2)


def test_the_first_update_on_fresh_answers_has_the_plain_gradient() -> None:
    fresh = torch.tensor([[-0.3, -1.2]], requires_grad=True)
    advantages, mask = torch.tensor([0.7]), torch.ones(1, 2)
    (plain,) = torch.autograd.grad(policy_gradient_loss(fresh, advantages, mask, token_count=2)[0], fresh)
    clipped, _ = policy_gradient_loss(fresh, advantages, mask, token_count=2, sampled=fresh.detach(), clip_ratio=0.2)
    assert torch.allclose(torch.autograd.grad(clipped, fresh)[0], plain)


def test_the_preference_loss_is_the_log_sigmoid_of_the_margin() -> None:
    preferred, rejected = torch.tensor([0.4, -1.0]), torch.tensor([-0.1, 0.5])
    expected = sum(math.log1p(math.exp(-0.3 * margin)) for margin in (0.5, -1.5)) / 2
    assert float(preference_loss(preferred, rejected, beta=0.3, pair_count=2)) == pytest.approx(expected, rel=1e-5)
