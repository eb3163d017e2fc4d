"""Intervals and tests against enumeration, root finding and simulation."""

import itertools
import math
import random
import tracemalloc

import pytest

from zhub.evaluation.statistics import (
    MAX_DRAWS,
    accuracy,
    bootstrap_interval,
    mcnemar_exact,
    n_resamples,
    normal_interval,
    paired_bootstrap,
    paired_p_value,
    pass_at_k,
    sign_flip,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (57, 200), (1, 1)])
def test_wilsons_interval_holds_the_shares_that_a_score_test_would_not_refuse(successes: int, n: int) -> None:
    def refused(share: float) -> bool:
        return (successes / n - share) ** 2 > 1.959963984540054**2 * share * (1 - share) / n

    low, high = wilson_interval(successes, n)
    for share in (low + 1e-9, high - 1e-9):
        assert not refused(min(max(share, 1e-12), 1 - 1e-12))
    assert low == 0 or refused(low - 1e-9)
    assert high == 1 or refused(high + 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_lopsided(seed: int) -> None:
    rng = random.Random(seed)
    base = [float(rng.random() < 0.5) for _ in range(16)]
    expert = [float(rng.random() < 0.7) for _ in range(16)]
    differences = [e - b for b, e in zip(base, expert, strict=True) if e != b]
    observed = abs(sum(differences))
    tosses = list(itertools.product((-1, 1), repeat=len(differences)))
    share = sum(abs(sum(toss)) >= observed for toss in tosses) / len(tosses)
    assert mcnemar_exact(base, expert) == pytest.approx(share)


def test_mcnemar_holds_for_thousands_of_rows() -> None:
    p = mcnemar_exact([0.0] * 6000 + [1.0] * 5000, [1.0] * 6000 + [0.0] * 5000)
    deviation = (6000 - 5500 - 0.5) / math.sqrt(11000 / 4)
    assert p == pytest.approx(math.erfc(deviation / math.sqrt(2)), rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_flip_test_nears_the_enumeration_of_all_signs(seed: int) -> None:
    rng = random.Random(seed)
    base, expert = [rng.random() for _ in range(10)], [rng.random() + 0.2 for _ in range(10)]
    differences = [e - b for b, e in zip(base, expert, strict=True)]
    observed = abs(sum(differences)) - 1e-12
    signs = list(itertools.product((-1, 1), repeat=10))
    share = sum(abs(sum(s * d for s, d in zip(row, differences, strict=True))) >= observed for row in signs) / len(
        signs
    )
    assert sign_flip(base, expert) == pytest.approx(share, abs=0.02)


def test_equal_rewards_are_no_evidence() -> None:
    assert mcnemar_exact([1.0, 0.0], [1.0, 0.0]) == 1.0
    assert sign_flip([0.25, 0.5], [0.25, 0.5]) == 1.0


def test_the_test_follows_the_kind_of_reward() -> None:
    binary, graded = ([0.0, 1.0, 0.0], [1.0, 1.0, 1.0]), ([0.25, 0.5, 0.0], [0.75, 0.5, 0.5])
    assert paired_p_value(*binary) == mcnemar_exact(*binary)
    assert paired_p_value(*graded) == sign_flip(*graded)
    with pytest.raises(ValueError, match="pairs"):
        paired_p_value([1.0], [1.0, 0.0])


def test_the_normal_interval_covers_the_mean_nineteen_times_in_twenty() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(1000):
        low, high = normal_interval([rng.random() ** 2 for _ in range(60)])
        covered += low <= 1 / 3 <= high
    assert covered / 1000 == pytest.approx(0.95, abs=0.025)


def test_an_accuracy_is_wilsons_for_right_or_wrong_and_never_leaves_zero_to_one() -> None:
    found = accuracy([1.0, 0.0, 1.0, 1.0])
    assert (found.mean, found.n) == (0.75, 4)
    assert (found.low, found.high) == wilson_interval(3, 4)
    graded = accuracy([0.9, 1.0, 0.95])
    assert 0 <= graded.low <= graded.mean <= graded.high <= 1
    with pytest.raises(ValueError, match="no rewards"):
        accuracy([])


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_nears_the_quantiles_of_all_resamples(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.random() ** 2 - 0.3 for _ in range(5)]
    means = sorted(math.fsum(drawn) / 5 for drawn in itertools.product(values, repeat=5))
    expected = means[round(0.025 * len(means))], means[round(0.975 * len(means))]
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.01)


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_rows() -> None:
    rng = random.Random(2)
    rewards = [rng.random() for _ in range(800)]
    assert bootstrap_interval(rewards) == pytest.approx(normal_interval(rewards), abs=0.003)


def test_the_same_values_give_the_same_interval_and_another_seed_another_one() -> None:
    values = [n / 7 for n in range(40)]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
def test_values_that_never_vary_leave_no_doubt(value: float) -> None:
    assert bootstrap_interval([value] * 30) == (value, value)


def test_the_bootstrap_and_the_sign_flip_test_agree_with_one_draw_after_another() -> None:
    """Values of three digits, so that sums tie: a tie counts as large."""
    rng = random.Random(3)
    base = [round(rng.random(), 1) for _ in range(150)]
    expert = [round(rng.random() + 0.05, 1) for _ in range(150)]
    differences = [e - b for b, e in zip(base, expert, strict=True)]
    means = sorted(math.fsum(rng.choices(differences, k=150)) / 150 for _ in range(10_000))
    assert paired_bootstrap(base, expert) == pytest.approx((means[250], means[9750]), abs=0.003)
    observed = abs(math.fsum(differences)) - 1e-9
    sums = [math.fsum(rng.choice((-1, 1)) * value for value in differences) for _ in range(10_000)]
    share = sum(abs(total) >= observed for total in sums) / len(sums)
    assert 0.05 < share < 0.95
    assert sign_flip(base, expert) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("count", [1, 499, 500, 501, 4000, 5000, 10_000])
def test_however_many_the_rows_a_bootstrap_has_a_bounded_number_of_draws(count: int) -> None:
    assert 1000 <= n_resamples(count) <= 10_000
    assert n_resamples(count) * count <= max(MAX_DRAWS, 1000 * count)


def test_ten_thousand_rows_are_compared_in_little_memory() -> None:
    rng = random.Random(4)
    base, expert = ([rng.random() for _ in range(10_000)] for _ in range(2))
    tracemalloc.start()
    paired_bootstrap(base, expert)
    sign_flip(base, expert)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


def test_a_paired_bootstrap_is_that_of_the_differences() -> None:
    base, other = [0.0, 1.0, 0.25, 0.5], [1.0, 1.0, 0.5, 0.0]
    assert paired_bootstrap(base, other) == bootstrap_interval([1.0, 0.0, 0.25, -0.5])
    with pytest.raises(ValueError, match="shorter"):
        paired_bootstrap([1.0], [])


@pytest.mark.parametrize(("samples", "passed", "k"), [(4, 1, 2), (6, 3, 3), (5, 5, 2), (5, 0, 5), (6, 5, 2)])
def test_pass_at_k_is_the_share_of_choices_with_a_pass(samples: int, passed: int, k: int) -> None:
    outcomes = [1] * passed + [0] * (samples - passed)
    choices = list(itertools.combinations(outcomes, k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(any(choice) for choice in choices) / len(choices))


@pytest.mark.parametrize(("samples", "passed", "k"), [(3, 1, 4), (3, 4, 2), (3, 1, 0), (3, -1, 2)])
def test_pass_at_k_of_too_few_samples_is_refused(samples: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match="cannot be estimated"):
        pass_at_k(samples, passed, k)
