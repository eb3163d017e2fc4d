"""How long a step may be: as long as it moves the model's distributions by no more than a bound.

A learning rate that suits one base destroys another: what a change of the parameters does grows with the number of
matrices, their widths and the kind of adapter. So a step is measured by what it did. Where it did too much, the
parameters go back along the way that they came, as in TRPO's line search (Schulman et al., arXiv:1502.05477, appendix
C), and the rate follows the measured divergence, as in PPO with an adaptive rate (Rudin et al., arXiv:2109.11978,
section 3). Departures: Adam gives the direction, and not the natural gradient; the reward is not asked again, because
each trial would take new answers; the rate is never above ``learning_rate``.

The divergence is half the mean square of what log-probabilities changed by, token by token (Schulman, "Approximating
KL Divergence", 2020: k2): for small steps the KL divergence where the policy drew the tokens, and a measure of change
on answers that it did not draw. So one bound serves every recipe.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1.5  # times the bound: the estimate is from a few answers
MAX_TRIALS = 6
LEAST_SHARE = 0.05  # of the step before, in one trial: far from the base the divergence is no longer a square
AIM = 0.9  # of the length that would meet the bound exactly
GROWTH = 1.2  # of the rate, after a step that did less than half of what it may
MEASURED_ANSWERS = 32  # of a step's, spread evenly: several hundred tokens tell enough


@dataclass(frozen=True)
class StepLength:
    """The share of a step that was taken, the divergence that it caused, and that of the whole step."""

    share: float
    divergence: float
    whole_divergence: float


def divergence(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Half the mean square of the change of log-probabilities, in nats a token; infinite where one is not a number."""
    change = torch.cat(list(after)) - torch.cat(list(before))
    measured = float(change.square().mean()) / 2
    return measured if math.isfinite(measured) else math.inf


def fit(divergence_of: Callable[[float], float], bound: float) -> StepLength:
    """Shorten a step until its divergence is within the bound; 0, where that does not succeed in MAX_TRIALS.

    ``divergence_of(share)`` takes so much of the step, and measures it; it is called with the share in the end, too.
    """
    share, trials = 1.0, 0
    whole = caused = divergence_of(share)
    while caused > TOLERANCE * bound:
        if trials == MAX_TRIALS:
            return StepLength(0.0, divergence_of(0.0), whole)
        share *= max(LEAST_SHARE, AIM * math.sqrt(bound / caused))
        caused = divergence_of(share)
        trials += 1
    return StepLength(share, caused, whole)


def next_rate(rate: float, step: StepLength, bound: float) -> float:
    """The rate of the next step, as a share of the ceiling: less after a step that was shortened, more after a small
    one, in (0, 1]."""
    if step.share < 1:
        return rate * max(step.share, LEAST_SHARE)
    if step.whole_divergence < bound / 2:
        return min(1.0, rate * GROWTH)
    return rate


def measured_rows(count: int) -> list[int]:
    """Which of so many answers are measured: at most MEASURED_ANSWERS, spread evenly."""
    few = min(count, MEASURED_ANSWERS)
    return [count * index // few for index in range(few)]
