"""A base that is decomposed to a rank: experts move its leading singular directions, in every state alike."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from following import IDS, as_z, error, logits, random_delta
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from zhub_workers.model import svf
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import carried_shares, decompose_base, load_basis
from zhub_workers.model.moe import MoeMatrix
from zhub_workers.model.svf import adapt_weight, carried_share, decompose, gradient_form, rows_break_even

RANK = 8
KINDS = ["llama", "gpt2", "mixtral"]
Load = Callable[[str], AdaptedModel]


@pytest.fixture
def load_leading(model_directory: Callable[[str], Path], tmp_path: Path) -> Load:
    def load(kind: str) -> AdaptedModel:
        base = load_base_model(model_directory(kind))
        return AdaptedModel(base, load_basis(tmp_path, decompose_base(base, tmp_path, rank=RANK)))

    return load


def decaying(m: int, n: int, seed: int = 1) -> Tensor:
    """A matrix whose singular values fall as those of trained weights do: ``1 / i``."""
    generator = torch.Generator().manual_seed(seed)
    r = min(m, n)
    u = torch.linalg.qr(torch.randn(m, r, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(n, r, generator=generator))[0]
    matrix: Tensor = (u / torch.arange(1, r + 1)) @ v.T
    return matrix


@pytest.mark.parametrize("m, n", [(120, 90), (90, 120)])
def test_the_leading_directions_are_those_of_the_whole_decomposition(m: int, n: int) -> None:
    weight = decaying(m, n)
    whole, leading = decompose(weight), decompose(weight, 8)
    assert [tuple(factor.shape) for factor in leading] == [(m, 8), (8,), (8, n)]
    assert torch.allclose(leading[1], whole[1][:8], rtol=1e-4)
    for vectors, all_vectors in ((leading[0].T, whole[0].T), (leading[2], whole[2])):
        assert torch.allclose(vectors @ vectors.T, torch.eye(8), atol=1e-5)
        cosines = (vectors * all_vectors[:8]).sum(1).abs()
        assert torch.allclose(cosines, torch.ones(8), atol=1e-3)


def test_they_are_the_same_each_time_and_leave_the_callers_random_numbers_alone() -> None:
    weight = decaying(120, 90)
    torch.manual_seed(3)
    first, number = decompose(weight, 8), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(number, torch.rand(1))
    assert all(torch.equal(a, b) for a, b in zip(first, decompose(weight, 8), strict=True))


@pytest.mark.parametrize("rank", [40, 89, 90, 500])
def test_a_rank_near_or_beyond_what_there_is_takes_the_exact_directions(rank: int) -> None:
    weight = decaying(120, 90)
    for factor, whole in zip(decompose(weight, rank), decompose(weight), strict=True):
        k = min(rank, 90)
        assert torch.equal(factor, whole[:, :k] if factor.shape[0] == 120 else whole[:k])


def test_what_directions_carry_is_their_share_of_the_squared_norm() -> None:
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    assert carried_share(weight, decompose(weight, 2)[1]) == pytest.approx(13 / 14)
    assert carried_share(torch.zeros(3, 3), torch.zeros(2)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_all_states_follow_the_leading_directions(load_leading: Load, kind: str) -> None:
    adapted = load_leading(kind)
    assert {len(s) for _, s, _ in adapted.basis.factors.values()} == {RANK}
    base, delta = logits(adapted), random_delta(adapted, 1)
    expected = by_hand(adapted, delta)
    stack = {name: torch.stack([torch.zeros_like(values), values]) for name, values in delta.items()}
    with adapted.merged(as_z(delta)):
        assert error(logits(adapted), expected) < 1e-4
    with adapted.training(delta):
        assert error(logits(adapted), expected) < 1e-4
    with adapted.rows(stack) as assign:
        assign([0, 1, 1])
        rows = logits(adapted)
    assert error(rows[1:], expected[1:]) < 1e-4
    assert torch.allclose(rows[0], base[0], atol=1e-6)


def by_hand(adapted: AdaptedModel, delta: dict[str, Tensor]) -> Tensor:
    """Logits through dense weights ``W + U diag(s * delta) Vh``."""
    model = copy.deepcopy(adapted.base.model)
    own = AdaptedModel(copy.copy(adapted.base), adapted.basis)
    layers = dict(model.named_modules())
    with torch.no_grad():
        for name, values in delta.items():
            u, s, vh = own.basis.factors[name]
            change, layer = (u * (s * values)) @ vh, own.layers[name]
            if isinstance(layer, MoeMatrix):
                parent, parameter, index = name.rsplit(".", 2)
                getattr(layers[parent], parameter)[int(index)] += change.T if layer.transposed else change
            else:
                layers[name].weight += change.T if isinstance(layer, Conv1D) else change
        found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("tokens", [1, 3], ids=["few tokens", "more"])
def test_the_gradient_is_that_of_the_leading_multipliers(load_leading: Load, tokens: int) -> None:
    adapted = load_leading("llama")
    delta = {name: values.requires_grad_() for name, values in random_delta(adapted, 2).items()}
    ids = IDS[:, :tokens]
    with adapted.training(delta):
        adapted.base.model(ids).logits.square().mean().backward()
    leaves = {name: values.detach().double().requires_grad_() for name, values in delta.items()}
    model, weights = copy.deepcopy(adapted.base.model).double(), {}
    for name, leaf in leaves.items():
        u, s, vh = (factor.double() for factor in adapted.basis.factors[name])
        weights[f"{name}.weight"] = adapted.linear_layer(name).weight.double() + (u * (s * leaf)) @ vh  # type: ignore[operator]
    torch.func.functional_call(model, weights, (ids,)).logits.square().mean().backward()
    assert max(error(delta[name].grad, leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None) < 1e-3


@pytest.mark.parametrize("k", [2, 11, 12, 24])
@pytest.mark.parametrize("right", [True, False])
def test_both_ways_to_merge_give_the_same_weight(k: int, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, delta = torch.randn(40, 24, generator=generator), torch.randn(3, k, generator=generator)
    q = torch.linalg.qr(torch.randn(24 if right else 40, k, generator=generator))[0]
    merged = []
    for thin in (True, False):
        monkeypatch.setattr(svf, "_merges_thin", lambda *_, thin=thin: thin)
        merged.append(adapt_weight(weight, q, delta, right=right))
    assert merged[0].shape == (3, 40, 24)
    assert torch.allclose(merged[0], merged[1], atol=1e-5)


def operations(*products: tuple[int, int, int]) -> int:
    return sum(2 * a * b * c for a, b, c in products)


@pytest.mark.parametrize("m, n", [(512, 512), (1792, 512)])
@pytest.mark.parametrize("k", [32, 200, 300, 512])
@pytest.mark.parametrize("tokens", [1, 400, 5000])
def test_forms_are_chosen_by_their_operations_at_a_rank_too(m: int, n: int, k: int, tokens: int) -> None:
    r = min(m, n)
    counts = {
        "summed": operations((r, tokens, r), (r, r, k)),
        "per token": 2 * operations((tokens, r, k)),
    }
    assert counts[gradient_form(r, k, tokens)] == min(counts.values())
    merging = min(operations((m, n, r), (r, k, r)), 2 * operations((m, n, k)))
    even = rows_break_even(m, n, k)
    assert 2 * operations((1, r, k)) * even == pytest.approx(merging)


def test_a_basis_of_another_rank_is_another_basis_and_made_anew(
    model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    base = load_base_model(model_directory("llama"))
    fingerprints = [decompose_base(base, tmp_path, rank=rank) for rank in (RANK, RANK + 1, None)]
    assert len(set(fingerprints)) == 3
    assert carried_shares(tmp_path) == []
    decompose_base(base, tmp_path, rank=RANK)
    shares = carried_shares(tmp_path)
    assert len(shares) == len(load_basis(tmp_path, fingerprints[0]).factors)
    assert all(0 < share < 1 for share in shares)
