"""Singular value fine-tuning against slow formulas written out entry by entry."""

import pytest
import torch

from zhub_workers.svf import adapt_weight, decompose, factored_delta, mix


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4)])
def test_the_factors_multiply_to_the_weight(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vh = decompose(weight)
    rank = min(shape)
    assert (u.shape, s.shape, vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    rebuilt = torch.stack([s[i] * torch.outer(u[:, i], vh[i]) for i in range(rank)]).sum(0)
    assert torch.allclose(rebuilt, weight, atol=1e-5)
    assert all(s[i] >= s[i + 1] for i in range(rank - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_delta_of_zeros_gives_the_weight_back_bit_for_bit(dtype: torch.dtype) -> None:
    weight = torch.randn(9, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    factors = decompose(weight)
    assert torch.equal(adapt_weight(weight, *factors, torch.zeros(6)), weight)


def test_each_multiplier_scales_its_own_singular_value() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    u, s, vh = decompose(weight)
    z = torch.tensor([2.0, 1.0, 0.0, 0.5, 1.0])
    adapted = adapt_weight(weight, u, s, vh, z - 1)
    expected = torch.stack([z[i] * s[i] * torch.outer(u[:, i], vh[i]) for i in range(5)]).sum(0)
    assert torch.allclose(adapted, expected, atol=1e-5)


def test_the_gradient_of_delta_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, upstream = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    u, s, vh = decompose(weight)
    delta = torch.zeros(4, requires_grad=True)
    torch.autograd.backward((adapt_weight(weight, u, s, vh, delta) * upstream).sum())
    expected = torch.stack([s[i] * (u[:, i] @ upstream @ vh[i]) for i in range(4)])
    assert delta.grad is not None and torch.allclose(delta.grad, expected, atol=1e-5)


def test_the_factored_form_gives_each_row_its_own_weight() -> None:
    generator = torch.Generator().manual_seed(5)
    weight, x = torch.randn(6, 4, generator=generator), torch.randn(3, 2, 4, generator=generator)
    u, s, vh = decompose(weight)
    delta = torch.randn(3, 4, generator=generator)
    delta[1] = 0
    added = factored_delta(x, u, s, vh, delta)
    for row in range(3):
        own = adapt_weight(weight, u, s, vh, delta[row])
        assert torch.allclose(x[row] @ weight.T + added[row], x[row] @ own.T, atol=1e-5)
    assert torch.equal(added[1], torch.zeros(2, 6))


def test_mixing_one_expert_with_weight_one_is_that_expert() -> None:
    z = torch.tensor([1.25, 0.5, 1.0])
    other = torch.tensor([3.0, 3.0, 3.0])
    assert torch.equal(mix([z], [1.0]), z)
    assert torch.equal(mix([z, other], [1.0, 0.0]), z)
    assert torch.equal(mix([z, other], [0.0, 0.0]), torch.ones(3))


def test_mixing_adds_the_weighted_departures_from_one() -> None:
    mixed = mix([torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])], [0.5, 0.25])
    assert torch.allclose(mixed, torch.tensor([1 + 0.5 * 1, 1 - 0.5 + 0.25 * 2]))


def test_sizes_that_do_not_fit_are_refused() -> None:
    u, s, vh = decompose(torch.eye(3))
    with pytest.raises(ValueError, match="3 singular values"):
        adapt_weight(torch.eye(3), u, s, vh, torch.zeros(2))
    with pytest.raises(ValueError, match="expected as many"):
        mix([torch.ones(2)], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        decompose(torch.full((2, 2), float("nan")))
