"""Singular value fine-tuning against slow formulas written out entry by entry."""

import pytest
import torch
from torch import Tensor

from zhub_workers.model.svf import (
    adapt_weight,
    decompose,
    factored_change,
    gradient_form,
    mix,
    rows_break_even,
    sigmoid_multipliers,
    squared_projections,
)

SHAPES = [(7, 5), (5, 7), (6, 6), (1, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_factors_multiply_to_the_weight(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vh = decompose(weight)
    rank = min(shape)
    assert (u.shape, s.shape, vh.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    rebuilt = torch.stack([s[i] * torch.outer(u[:, i], vh[i]) for i in range(rank)]).sum(0)
    assert torch.allclose(rebuilt, weight, atol=1e-5)
    assert all(s[i] >= s[i + 1] for i in range(rank - 1))


def square_factor(weight: Tensor) -> Tensor:
    u, _, vh = decompose(weight)
    return vh.T if weight.shape[0] > weight.shape[1] else u


def by_the_paper(weight: Tensor, z: Tensor) -> Tensor:
    """``U diag(s * z) Vh`` in float64, with signs and order of the directions as ``decompose`` found them."""
    u, s, vh = (factor.double() for factor in decompose(weight))
    return torch.stack([z[i].double() * s[i] * torch.outer(u[:, i], vh[i]) for i in range(len(s))]).sum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("right", [True, False])
def test_a_delta_of_zeros_gives_the_weight_back_bit_for_bit(dtype: torch.dtype, right: bool) -> None:
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    q = square_factor(weight)
    assert torch.equal(adapt_weight(weight, q, torch.zeros(6), right=right), weight)
    assert torch.equal(adapt_weight(weight, q, torch.zeros(2, 6), right=right), weight.expand(2, 6, 6))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_square_factor_alone_gives_the_papers_weight(shape: tuple[int, int], transposed: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator)
    z = torch.randn(2, min(shape), generator=generator)
    stored = weight.T.contiguous() if transposed else weight
    right = (shape[0] > shape[1]) != transposed
    adapted = adapt_weight(stored, square_factor(weight), z - 1, right=right)
    for expert in range(2):
        expected = by_the_paper(weight, z[expert])
        assert torch.allclose(adapted[expert].double(), expected.T if transposed else expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_factored_form_gives_each_row_its_own_weight(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    weight, x = torch.randn(shape, generator=generator), torch.randn(3, 2, shape[1], generator=generator)
    delta = torch.randn(3, min(shape), generator=generator)
    delta[1] = 0
    q = square_factor(weight)
    if shape[0] > shape[1]:
        y = (x + factored_change(x, q, delta)) @ weight.T
    else:
        y = x @ weight.T
        y = y + factored_change(y, q, delta)
    for row in range(3):
        assert torch.allclose(y[row].double(), x[row].double() @ by_the_paper(weight, 1 + delta[row]).T, atol=1e-5)
    assert not factored_change(torch.randn(3, 2, len(q), generator=generator), q, delta)[1].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [2, 40])
def test_the_projections_are_the_gradient_through_the_dense_weight(shape: tuple[int, int], tokens: int) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(shape, generator=generator)
    x, dy = torch.randn(tokens, shape[1], generator=generator), torch.randn(tokens, shape[0], generator=generator)
    z = torch.ones(min(shape), requires_grad=True)
    torch.autograd.backward(((x.double() @ by_the_paper(weight, z).T) * dy).sum())
    a, b = (dy @ weight, x) if shape[0] > shape[1] else (dy, x @ weight.T)
    found = squared_projections(a, b, square_factor(weight))
    assert z.grad is not None
    assert torch.allclose(found, z.grad, atol=1e-5 * float(z.grad.abs().max()))


def operations(*products: tuple[int, int, int]) -> int:
    """Of matrix products of these sizes, two a multiply-add."""
    return sum(2 * a * b * c for a, b, c in products)


@pytest.mark.parametrize("m, n", [(512, 512), (1792, 512), (512, 1792), (4096, 14336)])
@pytest.mark.parametrize("tokens", [1, 100, 511, 513, 5000, 100_000])
def test_the_form_of_the_gradient_is_the_one_with_the_fewest_operations(m: int, n: int, tokens: int) -> None:
    r = min(m, n)
    counts = {
        "summed": operations((r, tokens, r), (r, r, r)),
        "per token": 2 * operations((tokens, r, r)),
        "dense": operations((m, tokens, n), (r, m, n)),
        "both factors": operations((tokens, m, r), (tokens, n, r)),
    }
    assert counts[gradient_form(r, r, tokens)] == min(counts.values())


@pytest.mark.parametrize("m, n", [(128, 128), (384, 128), (128, 384)])
def test_an_own_weight_for_an_expert_pays_from_the_break_even_on(m: int, n: int) -> None:
    r = min(m, n)
    merging = operations((m, n, r), (r, r, r))

    def factored(tokens: int) -> int:
        return operations((tokens, r, r), (tokens, r, r))

    tokens = int(rows_break_even(m, n, r))
    assert factored(tokens - 1) < merging <= factored(tokens + 1)


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
    with pytest.raises(ValueError, match="3 singular values"):
        adapt_weight(torch.eye(3), torch.eye(3), torch.zeros(2), right=True)
    with pytest.raises(ValueError, match="expected as many"):
        mix([torch.ones(2)], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        decompose(torch.full((2, 2), float("nan")))


def test_sigmoid_multipliers_keep_the_nuclear_norm_and_begin_at_one() -> None:
    s = torch.tensor([3.0, 2.0, 0.5])
    assert torch.allclose(sigmoid_multipliers(torch.full((3,), 0.1), s), torch.ones(3))
    z = sigmoid_multipliers(torch.tensor([2.0, -1.0, 0.3]), s)
    assert float((s * z).sum()) == pytest.approx(5.5, rel=1e-6)
    assert bool((z > 0).all())
