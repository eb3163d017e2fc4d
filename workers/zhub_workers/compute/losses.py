"""The training recipes, over plain tensors: what a reward, a target or a preference does to an expert.

``reinforce``. Source: arXiv:2501.06252, eq. 2: ``-r log p`` with r in {-1, +1}, and a KL penalty. Departures: answers
are sampled, where the authors' code decodes greedily and so has no unbiased gradient; the divergence is estimated on
the sampled tokens, where theirs sums over the vocabulary; a reward in [0, 1] counts as 2r - 1.

``rloo``. Source: Ahmadian et al., arXiv:2402.14740: each sample against the mean of its group's others. Departure: the
loss is a mean over tokens.

``grpo``. Source: Shao et al., arXiv:2402.03300, as mended by Dr. GRPO (arXiv:2503.20783: no division by the group's
standard deviation, none by an answer's own length) and DAPO (arXiv:2503.14476: mean over tokens, groups without
variance teach nothing). Departures: such groups are not sampled anew, and the divergence still counts in them; the
mean runs over the tokens that there are.

Exploration: where answers are not all right, a token counts for more the less likely it was: the score-function form
of an entropy bonus on the token's own distribution, with the coefficient that keeps entropy from running out set from
step to step, as in Skywork-OR1 (arXiv:2505.22312, section 4). Departure: none where a prompt is answered rightly.

``sft``. The next-token loss on targets: the paper's ablation (table 4).

``dpo``. Source: Rafailov et al., arXiv:2305.18290, eq. 7, without departures.

Every loss gives one micro-batch's share, so that the shares of a step add up to the step's loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from zhub_workers.compute.vectors import Vectors


def reinforce_advantages(rewards: Tensor) -> Tensor:
    """Return ``2 r - 1``: +1 for a right answer, -1 for a wrong one, no baseline. Any shape, rewards in [0, 1]."""
    return 2 * rewards - 1


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Return each reward less the mean of the other samples of its prompt.

    Args:
        rewards: ``(P, G)``, G >= 2 samples of each of P prompts.
    """
    size = rewards.shape[1]
    return _centred(rewards) * (size / (size - 1))


def grpo_advantages(rewards: Tensor) -> Tensor:
    """Return each reward less the mean of its group, ``(P, G)``; exactly zero where a group was rewarded alike."""
    return _centred(rewards)


ADVANTAGES = {"reinforce": reinforce_advantages, "rloo": rloo_advantages, "grpo": grpo_advantages}


def policy_gradient_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    token_count: float,
    reference: Tensor | None = None,
    kl_coef: float = 0.0,
    sampled: Tensor | None = None,
    clip_ratio: float = 0.0,
    exploration: Tensor | None = None,
    entropy: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss of a micro-batch and its divergence from the base, both summed over tokens / ``token_count``.

    ``-A log p + kl_coef * k3``; with ``sampled`` the first term is PPO's ``-min(w A, clip(w, 1 ± clip_ratio) A)`` with
    ``w = p / p_sampled``, for all updates on the same answers but the first, where both have one gradient.

    Args:
        logprobs: of the sampled tokens under the policy in training, ``(b, t)``.
        advantages: one per answer, ``(b,)``.
        mask: 1.0 on an answer's tokens, its stop token included, ``(b, t)``.
        token_count: of the whole step. Long and short answers count by their tokens.
        reference: log-probabilities under the base, ``(b, t)``, without gradient; needed where ``kl_coef`` > 0.
        sampled: log-probabilities under the policy that drew the tokens, ``(b, t)``, without gradient.
        exploration: coefficient of the entropy bonus in each answer, ``(b,)``.
        entropy: of a token, in nats, as it was before: the baseline of the bonus.
    """
    worth = advantages.unsqueeze(1)  # of each token
    if exploration is not None:
        worth = worth + exploration.unsqueeze(1) * (-logprobs.detach() - entropy)
    weighted = worth * logprobs
    if sampled is not None:
        ratio = torch.exp(logprobs - sampled)
        clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
        weighted = torch.minimum(ratio * worth, clipped * worth)
    loss = -(weighted * mask).sum() / token_count
    if reference is None or kl_coef == 0:
        return loss, torch.zeros((), device=loss.device)
    divergence = (k3(logprobs, reference) * mask).sum() / token_count
    return loss + kl_coef * divergence, divergence.detach()


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimator of KL(policy ‖ base) from tokens that the policy sampled: never negative, low variance.

    As a loss its expected gradient is that of KL(base ‖ policy), the direction that the authors' code uses.
    Source: J. Schulman, "Approximating KL Divergence" (2020).
    """
    ratio = reference - logprobs
    return torch.expm1(ratio) - ratio


def next_token_loss(logprobs: Tensor, mask: Tensor, *, token_count: float) -> Tensor:
    """Return the negative log-likelihood of the targets' tokens, ``(b, t)``, over the step's ``token_count``."""
    return -(logprobs * mask).sum() / token_count


def preference_loss(preferred: Tensor, rejected: Tensor, *, beta: float, pair_count: float) -> Tensor:
    """Return ``-log sigmoid(beta * (preferred - rejected))``, summed over pairs / ``pair_count``.

    Args:
        preferred, rejected: log-ratio of policy to base of the whole answer, ``(pairs,)``.
    """
    return -F.logsigmoid(beta * (preferred - rejected)).sum() / pair_count


class Loss(Protocol):
    """The loss of some rows of a step, given the log-probabilities of their answers' tokens.

    ``rows_per_unit`` rows in a row belong together and are never parted. ``__call__`` gets ``logprobs`` and ``mask``
    ``(b, t)`` and the rows' positions in the step, and returns the loss and named sums to report. ``part`` is the same
    step's loss for these rows alone, which then count from 0, fit to travel.
    """

    @property
    def rows_per_unit(self) -> int: ...

    def __call__(self, logprobs: Tensor, mask: Tensor, rows: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]: ...

    def part(self, rows: slice) -> "Loss": ...


@dataclass(frozen=True)
class PolicyGradient:
    """``policy_gradient_loss`` of a step's answers; what is given per token is one tensor an answer."""

    advantages: Tensor
    token_count: float
    kl_coef: float = 0.0
    reference: Sequence[Tensor] | None = None
    clip_ratio: float = 0.0
    sampled: Sequence[Tensor] | None = None
    exploration: Tensor | None = None
    entropy: float = 0.0
    rows_per_unit: int = 1

    @property
    def explores(self) -> bool:
        """Whether it rewards entropy in some answer."""
        return self.exploration is not None and bool(self.exploration.any())

    def __call__(self, logprobs: Tensor, mask: Tensor, rows: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, divergence = policy_gradient_loss(
            logprobs,
            self.advantages[list(rows)].to(logprobs.device),
            mask,
            token_count=self.token_count,
            reference=_padded(self.reference, rows, logprobs),
            kl_coef=self.kl_coef,
            sampled=_padded(self.sampled, rows, logprobs),
            clip_ratio=self.clip_ratio,
            exploration=None if self.exploration is None else self.exploration[list(rows)].to(logprobs.device),
            entropy=self.entropy,
        )
        return loss, {"kl": divergence}

    def part(self, rows: slice) -> "PolicyGradient":
        return replace(
            self,
            advantages=self.advantages[rows].clone(),
            reference=None if self.reference is None else Vectors(self.reference[rows]),
            sampled=None if self.sampled is None else Vectors(self.sampled[rows]),
            exploration=None if self.exploration is None else self.exploration[rows].clone(),
        )


@dataclass(frozen=True)
class NextToken:
    """``next_token_loss`` of a step's targets."""

    token_count: float
    rows_per_unit: int = 1

    def __call__(self, logprobs: Tensor, mask: Tensor, rows: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(logprobs, mask, token_count=self.token_count), {}

    def part(self, rows: slice) -> "NextToken":
        return self


@dataclass(frozen=True)
class Preference:
    """``preference_loss`` of a step's pairs: even rows are preferred, odd ones the rejected of the same pair."""

    beta: float
    pair_count: float
    reference: Sequence[Tensor]
    rows_per_unit: int = 2

    def __call__(self, logprobs: Tensor, mask: Tensor, rows: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        reference = torch.stack([self.reference[row].sum() for row in rows]).to(logprobs.device)
        ratios = (logprobs * mask).sum(1) - reference
        preferred, rejected = ratios[0::2], ratios[1::2]
        margin = (preferred - rejected).detach().sum() / self.pair_count
        loss = preference_loss(preferred, rejected, beta=self.beta, pair_count=self.pair_count)
        return loss, {"margin": margin}

    def part(self, rows: slice) -> "Preference":
        return replace(self, reference=Vectors(self.reference[rows]))


def _centred(rewards: Tensor) -> Tensor:
    centred = rewards - rewards.mean(1, keepdim=True)
    # The mean of equal numbers can differ from them in the last bit, and Adam would blow that up to a full step.
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return centred.masked_fill(equal, 0.0)


def _padded(values: Sequence[Tensor] | None, rows: Sequence[int], like: Tensor) -> Tensor | None:
    if values is None:
        return None
    padded = pad_sequence([values[row] for row in rows], batch_first=True).to(like.device)
    return F.pad(padded, (0, like.shape[1] - padded.shape[1]))
