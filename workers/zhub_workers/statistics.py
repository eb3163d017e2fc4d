"""How sure one may be of a mean reward, and of a difference between base and expert on the same rows."""

import math
from collections.abc import Sequence

import torch

from zhub.manifest import Accuracy

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
PERMUTATIONS = 10_000


def accuracy(rewards: Sequence[float]) -> Accuracy:
    """Mean reward with its 95 % interval: Wilson's where all rewards are 0 or 1, else the normal one cut to [0, 1].

    Raises:
        ValueError: no rewards.
    """
    count = len(rewards)
    if count == 0:
        raise ValueError("no rewards to take the mean of")
    mean = math.fsum(rewards) / count
    if is_binary(rewards):
        low, high = wilson_interval(int(sum(rewards)), count)
    else:
        low, high = normal_interval(rewards)
    return Accuracy(mean=mean, low=low, high=high, n=count)


def paired_p_value(base: Sequence[float], expert: Sequence[float]) -> float:
    """Two-sided p of "base and expert are equally good", from rewards on the same rows in the same order."""
    if len(base) != len(expert):
        raise ValueError(f"{len(base)} rewards of the base and {len(expert)} of the expert: they must be pairs")
    if is_binary(base) and is_binary(expert):
        return mcnemar_exact(base, expert)
    return sign_flip(base, expert)


def is_binary(rewards: Sequence[float]) -> bool:
    return all(reward in (0.0, 1.0) for reward in rewards)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion: right for few rows and near 0 and 1. Source: Wilson, JASA 22 (1927)."""
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly, which rounding would miss.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def normal_interval(rewards: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of rewards in [0, 1] by the central limit theorem; everything for a single row."""
    count = len(rewards)
    if count < 2:
        return 0.0, 1.0
    mean = math.fsum(rewards) / count
    variance = math.fsum((reward - mean) ** 2 for reward in rewards) / (count - 1)
    half = Z_95 * math.sqrt(variance / count)
    return max(0.0, mean - half), min(1.0, mean + half)


def mcnemar_exact(base: Sequence[float], expert: Sequence[float]) -> float:
    """Exact two-sided McNemar test on 0/1 rewards: only rows where the two differ say anything.

    Among those, base and expert win with equal chance under the null: a binomial with one half.
    """
    lost = sum(b > e for b, e in zip(base, expert, strict=True))
    won = sum(e > b for b, e in zip(base, expert, strict=True))
    n = lost + won
    tail, ways = 0, 1
    for k in range(min(lost, won) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)  # the next binomial coefficient, exact
    return min(1.0, 2 * tail / (1 << n))


def sign_flip(base: Sequence[float], expert: Sequence[float]) -> float:
    """Two-sided paired permutation test: how often random signs on the differences give as large a sum.

    Signs come from a fixed seed, so equal rewards give equal p; at least 1 / (PERMUTATIONS + 1).
    """
    pairs = zip(base, expert, strict=True)
    differences = torch.tensor([e - b for b, e in pairs if e != b], dtype=torch.float64)
    if not len(differences):
        return 1.0
    observed = differences.sum().abs() - 1e-12  # sums of the same numbers in another order must count as equal
    generator = torch.Generator().manual_seed(0)
    as_large = 0
    for _ in range(PERMUTATIONS // 1000):
        signs = torch.randint(0, 2, (1000, len(differences)), generator=generator, dtype=torch.float64) * 2 - 1
        as_large += int(((signs @ differences).abs() >= observed).sum())
    return (as_large + 1) / (PERMUTATIONS + 1)
