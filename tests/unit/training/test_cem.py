"""The cross-entropy method on functions whose best point is known."""

import math
import statistics

import pytest
import torch

from zhub_workers.training.cem import Score, draw, ranked, refitted


def test_it_finds_the_best_point_of_a_bowl() -> None:
    generator, best = torch.Generator().manual_seed(0), torch.tensor([[0.2, 0.8], [0.5, 0.1]])
    mean, deviation = torch.full((2, 2), 0.5, dtype=torch.float64), torch.full((2, 2), 0.5, dtype=torch.float64)
    for _ in range(30):
        drawn = draw(mean, deviation, 64, generator, low=0.0, high=1.0)
        scores = [Score(-float((candidate - best).square().sum()), 0.0) for candidate in drawn]
        mean, deviation = refitted(drawn[ranked(scores)[:12]])
    assert torch.allclose(mean.float(), best, atol=0.02)


def test_what_is_drawn_has_the_mean_and_the_deviation_and_keeps_to_the_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.1, 3.0]).double()
    wide = draw(mean, deviation, 20_000, generator, low=-math.inf, high=math.inf)
    assert torch.allclose(wide.mean(0), mean, atol=0.1) and torch.allclose(wide.std(0), deviation, rtol=0.05)
    cut = draw(mean, deviation, 1000, generator, low=-0.5, high=0.6)
    assert float(cut.min()) == -0.5 and float(cut.max()) == 0.6


def test_a_reward_comes_before_confidence_and_the_first_of_equals_before_the_others() -> None:
    scores = [Score(0.5, -9.0), Score(0.4, -1.0), Score(0.5, -2.0), Score(0.5, -2.0), Score(0.4, -math.inf)]
    assert ranked(scores) == [2, 3, 0, 1, 4]


def test_the_next_population_is_drawn_around_the_elites() -> None:
    elites = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 4.0]]).double()
    mean, deviation = refitted(elites)
    assert mean.tolist() == [0.5, 2.0]
    of_columns = [statistics.stdev(column.tolist()) for column in elites.T]
    assert deviation.tolist() == pytest.approx(of_columns)
