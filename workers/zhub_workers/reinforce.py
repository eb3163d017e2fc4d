"""The policy gradient of an expert: group-relative REINFORCE with a penalty for leaving the base.

Sources: REINFORCE with a KL penalty, arXiv:2501.06252; several samples of a prompt as each other's baseline, RLOO,
arXiv:2402.14740; no division by the group's standard deviation and none by an answer's own length, Dr. GRPO,
arXiv:2503.20783; the estimator k3 of the divergence, J. Schulman, "Approximating KL Divergence" (2020).

Departures. From 2501.06252: rewards are centred in their group and not ±1 without a baseline, answers are sampled and
not greedy, the divergence is estimated on the sampled tokens and not summed over the vocabulary. From RLOO: a sample
is compared with the mean of its whole group, itself included; that is RLOO's advantage times (G - 1) / G, which Adam
does not notice. From Dr. GRPO: the mean runs over the tokens that there are and not over a fixed budget. One update
per rollout, so there is no importance ratio and nothing to clip.
"""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor) -> Tensor:
    """Return each reward less the mean of its group.

    Args:
        rewards: ``(P, G)``, G samples of each of P prompts.

    Returns:
        ``(P, G)``, rows that sum to zero; exactly zero where all samples of a prompt were rewarded alike.
    """
    advantages = rewards - rewards.mean(1, keepdim=True)
    # The mean of equal numbers can differ from them in the last bit, and Adam would blow that up to a full step.
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return advantages.masked_fill(equal, 0.0)


def policy_gradient_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    token_count: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss of one micro-batch and its divergence from the base, summed and over ``token_count``.

    ``mean over tokens of -A logp + kl_coef * k3``. Long and short answers count by their tokens.

    Args:
        logprobs: of the sampled tokens under the policy being trained, ``(b, t)``.
        ref_logprobs: the same under the base, ``(b, t)``, without gradient; None where ``kl_coef`` is 0.
        advantages: one per answer, ``(b,)``.
        mask: 1.0 on an answer's tokens, its stop token included, ``(b, t)``.
        token_count: of the whole step, so that micro-batches add up to the step's mean.
    """
    loss = -(advantages.unsqueeze(1) * logprobs * mask).sum() / token_count
    if ref_logprobs is None or kl_coef == 0:
        return loss, torch.zeros((), device=loss.device)
    divergence = (k3(logprobs, ref_logprobs) * mask).sum() / token_count
    return loss + kl_coef * divergence, divergence.detach()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Schulman's estimator of KL(policy ‖ base) from tokens that the policy sampled: never negative, low variance.

    As a loss its expected gradient is that of KL(base ‖ policy), the direction that the authors' code uses.
    """
    ratio = ref_logprobs - logprobs
    return torch.expm1(ratio) - ratio
