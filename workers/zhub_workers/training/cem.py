"""The cross-entropy method: a search by populations, each drawn around the best of the one before.

Source: the few-shot adaptation of arXiv:2501.06252, as its authors' code has it: a normal distribution of each weight
by itself, whose next mean and deviation are those of the elites. There is no floor under the deviation, so the search
ends where the elites agree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Score(NamedTuple):
    """What a candidate came to, the larger the better: its reward, and among equal ones its confidence."""

    reward: float
    confidence: float


def draw(mean: Tensor, deviation: Tensor, count: int, generator: torch.Generator, *, low: float, high: float) -> Tensor:
    """``count`` candidates, ``(count, *mean.shape)`` float64, cut to the bounds."""
    noise = torch.randn(count, *mean.shape, generator=generator, dtype=torch.float64)
    return (mean + deviation * noise).clamp(low, high)


def ranked(scores: Sequence[Score]) -> list[int]:
    """The candidates' indices, the best first; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda index: scores[index], reverse=True)


def refitted(elites: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the elites, ``(n, …)``, n of at least 2."""
    return elites.mean(0), elites.std(0)
