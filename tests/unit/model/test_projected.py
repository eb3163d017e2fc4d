"""Merged layers against autograd through the dense weight in float64, and blocks that keep to themselves."""

import pytest
import torch
from torch import Tensor

from zhub_workers.model.projected import Blocks, Sides, blocks_linear, merged_linear
from zhub_workers.model.svf import adapt_weight, decompose

NAN = float("nan")
CASES = [
    (shape, transposed, bias) for shape in [(7, 5), (5, 7), (6, 6)] for transposed in (False, True) for bias in (0, 1)
]


class Layer:
    """A random matrix as a layer stores it, with K experts."""

    def __init__(self, shape: tuple[int, int], transposed: bool, bias: int, experts: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(shape, generator=generator)
        self.bias = torch.randn(shape[0], generator=generator) if bias else None
        self.sides = Sides(transposed=transposed, of_input=shape[0] > shape[1])
        u, s, vh = decompose(self.weight)
        self.factors = u.double(), s.double(), vh.double()
        self.q = vh.T if self.sides.of_input else u
        self.delta = 0.3 * torch.randn(experts, len(s), generator=generator)
        stored = self.weight.T.contiguous() if transposed else self.weight
        self.merged = adapt_weight(stored, self.q, self.delta, right=self.sides.right)

    def slow(self, x: Tensor, delta: Tensor) -> Tensor:
        """``x W'^T + b`` with the dense weight in float64."""
        u, s, vh = self.factors
        y = x.double() @ (self.weight.double() + (u * (s * delta.double())) @ vh).T
        return y if self.bias is None else y + self.bias.double()


def close(found: Tensor | None, expected: Tensor | None) -> bool:
    assert found is not None and expected is not None
    return torch.allclose(found.double(), expected.double(), atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shape, transposed, bias", CASES)
@pytest.mark.parametrize("tokens", [2, 30])
def test_a_merged_layer_is_the_dense_one_forwards_and_backwards(
    shape: tuple[int, int], transposed: bool, bias: int, tokens: int
) -> None:
    layer = Layer(shape, transposed, bias, experts=1)
    x, dy = torch.randn(2, tokens, shape[1]), torch.randn(2, tokens, shape[0])
    ends = []
    for double in (False, True):
        own_x, own_delta = x.clone().requires_grad_(), layer.delta[0].clone().requires_grad_()
        if double:
            y = layer.slow(own_x, own_delta)
        else:
            y = merged_linear(own_x, layer.merged[0], layer.bias, own_delta, layer.q, layer.sides)
        torch.autograd.backward((y * dy).sum())
        ends.append((y.detach(), own_x.grad, own_delta.grad))
    assert all(close(found, expected) for found, expected in zip(*ends, strict=True))


@pytest.mark.parametrize("shape, transposed, bias", CASES)
@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [0, 0, 0, 1, 1, 2], [2, 2, 2]])
def test_rows_in_blocks_are_each_their_own_experts_forwards_and_backwards(
    shape: tuple[int, int], transposed: bool, bias: int, owners: list[int]
) -> None:
    layer = Layer(shape, transposed, bias, experts=3)
    x, dy = torch.randn(len(owners), 4, shape[1]), torch.randn(len(owners), 4, shape[0])
    blocks = Blocks.of(owners)
    ends = []
    for double in (False, True):
        own_x, own_delta = x.clone().requires_grad_(), layer.delta.clone().requires_grad_()
        if double:
            y = torch.stack([layer.slow(own_x[row], own_delta[owner]) for row, owner in enumerate(owners)])
        else:
            y = blocks_linear(own_x, layer.merged, layer.bias, own_delta, layer.q, layer.sides, blocks)
        torch.autograd.backward((y * dy).sum())
        ends.append((y.detach(), own_x.grad, own_delta.grad))
    assert all(close(found, expected) for found, expected in zip(*ends, strict=True))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
@pytest.mark.parametrize("owners", [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
def test_what_is_not_finite_in_one_expert_stays_there(shape: tuple[int, int], owners: list[int]) -> None:
    layer = Layer(shape, False, 0, experts=2)
    at = torch.tensor(owners)
    x = torch.randn(4, 3, shape[1])
    x[at == 1] = NAN
    delta = layer.delta.clone().requires_grad_()
    weights = layer.merged.clone()
    weights[1] = NAN
    x.requires_grad_()
    y = blocks_linear(x, weights, None, delta, layer.q, layer.sides, Blocks.of(owners))
    torch.autograd.backward(y.sum())
    assert x.grad is not None and delta.grad is not None
    assert y[at == 0].isfinite().all() and y[at == 1].isnan().all()
    assert x.grad[at == 0].isfinite().all()
    assert delta.grad[0].isfinite().all() and delta.grad[1].isnan().all()
    assert bool((delta.grad[0] == 0).all()) == (0 not in owners)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_an_architecture_may_add_to_a_layers_output_in_place(in_blocks: bool) -> None:
    layer = Layer((5, 7), False, 0, experts=1)
    x, gradients = torch.randn(2, 3, 7), []
    for in_place in (False, True):
        delta = layer.delta.clone().requires_grad_()
        if in_blocks:
            y = blocks_linear(x, layer.merged, None, delta, layer.q, layer.sides, Blocks.of([0, 0]))
        else:
            y = merged_linear(x, layer.merged[0], None, delta[0], layer.q, layer.sides)
        y = y.add_(1) if in_place else y + 1
        torch.autograd.backward(y.square().sum())
        gradients.append(delta.grad)
    assert close(gradients[1], gradients[0])


def test_rows_of_one_expert_that_are_not_side_by_side_are_refused() -> None:
    with pytest.raises(ValueError, match="side by side"):
        Blocks.of([0, 1, 0])
