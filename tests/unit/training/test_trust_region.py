"""The bound of a step: how it is measured, how a step is shortened, and what the next rate is."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import PROMPTS, Load, reinforcement, run, supervised, write_rows

from zhub_workers.training import trust_region
from zhub_workers.training.trust_region import StepLength, divergence, fit, next_rate


class Measured:
    """A step whose divergence grows as a function of the share taken; it remembers where it stands."""

    def __init__(self, function: Callable[[float], float]) -> None:
        self.function, self.share, self.trials = function, 1.0, 0

    def __call__(self, share: float) -> float:
        self.share, self.trials = share, self.trials + 1
        return self.function(share)


def test_the_divergence_is_half_the_mean_square_change_of_a_token() -> None:
    before, after = (
        [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])],
        [torch.tensor([-1.0, -2.5]), torch.tensor([-2.0])],
    )
    assert divergence(before, after) == pytest.approx((0.25 + 1.0) / 3 / 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_beyond_every_bound(value: float) -> None:
    assert divergence([torch.tensor([-1.0])], [torch.tensor([value])]) == math.inf


def test_a_small_change_is_about_the_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator)
    moved = logits + 0.05 * torch.randn(50, generator=generator)
    p, log_p, log_q = logits.softmax(0), logits.log_softmax(0), moved.log_softmax(0)
    drawn = torch.multinomial(p, 20_000, replacement=True, generator=generator)
    assert divergence([log_p[drawn]], [log_q[drawn]]) == pytest.approx(float((p * (log_p - log_q)).sum()), rel=0.1)


@given(st.floats(1e-6, 1e9), st.floats(1.0, 4.0), st.floats(1e-6, 1.0))
def test_a_step_of_any_size_is_brought_within_its_bound(size: float, power: float, bound: float) -> None:
    measured = Measured(lambda share: size * share**power)
    length = fit(measured, bound)
    assert length.divergence <= trust_region.TOLERANCE * bound
    assert measured.share == length.share  # where the parameters are left
    assert length.whole_divergence == size
    assert measured.trials <= trust_region.MAX_TRIALS + 2
    if size <= trust_region.TOLERANCE * bound:
        assert length.share == 1


def test_of_a_square_one_trial_is_enough_and_most_of_the_bound_is_used() -> None:
    measured = Measured(lambda share: 3.0 * share**2)
    length = fit(measured, 0.03)
    assert measured.trials == 2
    assert 0.7 * 0.03 < length.divergence <= 0.03


def test_a_step_that_is_too_long_at_any_length_is_not_taken() -> None:
    measured = Measured(lambda share: math.inf if share else 0.0)
    assert fit(measured, 0.02) == StepLength(0.0, 0.0, math.inf)
    assert measured.share == 0


def test_the_rate_follows_what_the_steps_do() -> None:
    assert next_rate(1.0, StepLength(0.1, 0.02, 2.0), 0.02) == pytest.approx(0.1)
    assert next_rate(0.1, StepLength(1.0, 0.015, 0.015), 0.02) == 0.1
    assert next_rate(0.1, StepLength(1.0, 0.001, 0.001), 0.02) == pytest.approx(0.12)
    assert next_rate(0.95, StepLength(1.0, 0.0, 0.0), 0.02) == 1.0, "the ceiling"
    assert next_rate(1.0, StepLength(0.0, 0.0, math.inf), 0.02) == pytest.approx(trust_region.LEAST_SHARE)


@pytest.mark.parametrize("count", [1, 5, 32, 33, 256])
def test_the_measured_answers_are_spread_over_all(count: int) -> None:
    rows = trust_region.measured_rows(count)
    assert len(set(rows)) == len(rows) == min(count, trust_region.MEASURED_ANSWERS)
    assert rows[0] == 0 and count - rows[-1] <= count / len(rows) + 1


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_no_step_of_a_training_does_more_than_its_bound_at_the_highest_rate(
    load_adapted: Load, tmp_path: Path, adapter: str
) -> None:
    asked: dict[str, Any] = {"adapter": adapter, "lora_rank": 2, "learning_rate": 1.0, "step_kl": 0.01, "n_steps": 6}
    for spec in (reinforcement(**asked), supervised(**asked)):
        rows = write_rows(tmp_path / "t", PROMPTS, answer="eel")
        _, events = run(load_adapted("llama"), spec, rows)
        steps = [data for _, _, data in events if data and "step_kl" in data]
        assert steps and all(0 < data["step_kl"] <= trust_region.TOLERANCE * 0.01 for data in steps)
        assert all(data["learning_rate"] < 0.5 for data in steps)


def test_without_a_bound_the_rate_is_the_one_that_was_asked_for(load_adapted: Load, tmp_path: Path) -> None:
    spec = supervised(learning_rate=0.3, step_kl=0.0, n_steps=2)
    _, events = run(load_adapted("llama"), spec, write_rows(tmp_path / "t", PROMPTS, answer="eel"))
    rates = [data["learning_rate"] for _, _, data in events if data and "learning_rate" in data]
    assert rates == pytest.approx([0.3, 0.3 * 0.55])
