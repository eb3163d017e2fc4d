"""The states of an adapted model agree with each other, and a delta of zeros is the base itself."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from following import IDS, as_z, error, logits, random_delta, side_by_side
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from zhub.errors import ArtifactError, BasisMismatchError
from zhub_workers.model import rows_layer
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import Basis, check_z, decompose_base, load_basis
from zhub_workers.model.svf import factored_change

KINDS = ["llama", "gpt2", "neox"]
Load = Callable[[str], AdaptedModel]


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_of_zeros_answers_bit_for_bit_like_the_base_in_every_state(load_adapted: Load, kind: str) -> None:
    adapted = load_adapted(kind)
    base, zero = logits(adapted), adapted.zero_delta()
    with adapted.merged(as_z(zero)):
        assert torch.equal(logits(adapted), base)
    with adapted.training(zero):
        assert torch.equal(logits(adapted), base)
    with adapted.rows({name: values.expand(3, -1) for name, values in zero.items()}) as assign:
        assign([0, 1, 2])
        assert torch.equal(logits(adapted), base)


@pytest.mark.parametrize("kind", KINDS)
def test_all_states_agree_on_an_expert(load_adapted: Load, kind: str) -> None:
    adapted = load_adapted(kind)
    base, delta = logits(adapted), random_delta(adapted, 1)
    with adapted.merged(as_z(delta)):
        merged = logits(adapted)
    with adapted.training(delta):
        training = logits(adapted)
    with adapted.rows({name: values.unsqueeze(0) for name, values in delta.items()}) as assign:
        assign([0, 0, 0])
        rows = logits(adapted)
    assert not torch.allclose(merged, base, atol=1e-2)
    assert torch.allclose(training, merged, atol=1e-4)
    assert torch.allclose(rows, merged, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_batch_each_follow_their_own_expert(load_adapted: Load, kind: str) -> None:
    adapted = load_adapted(kind)
    base = logits(adapted)
    first, second = random_delta(adapted, 2), random_delta(adapted, 3)
    stacked = {name: torch.stack([first[name], torch.zeros_like(first[name]), second[name]]) for name in first}
    with adapted.rows(stacked) as assign:
        assign([0, 1, 2])
        mixed = logits(adapted)
    for row, expert in ((0, first), (2, second)):
        with adapted.merged(as_z(expert)):
            assert torch.allclose(mixed[row], logits(adapted)[row], atol=1e-4)
    assert torch.equal(mixed[1], base[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owners", [[0, 0, 0], [0, 0, 1], [1, 1, 2]])
def test_rows_of_the_base_pay_for_no_expert(
    load_adapted: Load, kind: str, owners: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = load_adapted(kind)
    base, rows = logits(adapted), []
    experts = [random_delta(adapted, seed) for seed in (1, 2)]
    stack = {name: torch.stack([torch.zeros_like(e), e, experts[1][name]]) for name, e in experts[0].items()}

    def counted(x: Tensor, q: Tensor, delta_rows: Tensor) -> Tensor:
        rows.append(len(x))
        return factored_change(x, q, delta_rows)

    monkeypatch.setattr(rows_layer, "factored_change", counted)
    with torch.no_grad(), adapted.rows(stack) as assign:
        assign(owners)
        mixed = logits(adapted)
    of_experts = sum(owner > 0 for owner in owners)
    assert set(rows) == ({of_experts} if of_experts else set())
    assert torch.equal(mixed[: 3 - of_experts], base[: 3 - of_experts])


def test_rows_that_leave_the_batch_take_their_expert_along(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    stacked = {name: torch.stack([values, 2 * values, 3 * values]) for name, values in random_delta(adapted, 4).items()}
    with adapted.rows(stacked) as assign:
        assign([0, 1, 2])
        before = logits(adapted)
        assign([2])
        assert torch.allclose(logits(adapted, IDS[2:]), before[2:], atol=1e-5)


def slow_gradient(adapted: AdaptedModel, delta: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """By autograd through dense weights ``W + U diag(s * delta) Vh`` in float64; of the mean of the squared logits."""
    model = copy.deepcopy(adapted.base.model).double()
    leaves = {name: values.detach().double().requires_grad_() for name, values in delta.items()}
    weights = {}
    for name, leaf in leaves.items():
        u, s, vh = (factor.double() for factor in adapted.basis.factors[name])
        change = (u * (s * leaf)) @ vh
        transposed = isinstance(adapted.layers[name], Conv1D)
        own: Tensor = adapted.layers[name].weight  # type: ignore[assignment]
        weights[f"{name}.weight"] = own.double() + (change.T if transposed else change)
    torch.func.functional_call(model, weights, (ids,)).logits.square().mean().backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_gradient_of_training_is_autograd_through_dense_weights_in_float64(
    load_adapted: Load, kind: str, scale: float
) -> None:
    adapted = load_adapted(kind)
    delta = {name: (scale * values).requires_grad_() for name, values in random_delta(adapted, 1).items()}
    with adapted.training(delta):
        adapted.base.model(IDS).logits.square().mean().backward()
    expected = slow_gradient(adapted, delta, IDS)
    assert delta.keys() == expected.keys()
    assert max(error(delta[name].grad, expected[name]) for name in delta) < 1e-3


def test_multipliers_of_zero_have_a_gradient_too(load_adapted: Load) -> None:
    adapted = load_adapted("gpt2")
    delta = random_delta(adapted, 2)
    for values in delta.values():
        values[::3] = -1.0
    leaves = {name: values.requires_grad_() for name, values in delta.items()}
    with adapted.training(leaves):
        found = logits(adapted)
        adapted.base.model(IDS).logits.square().mean().backward()
    with adapted.merged(as_z({name: values.detach() for name, values in delta.items()})):
        assert torch.allclose(found, logits(adapted), atol=1e-4)
    expected = slow_gradient(adapted, delta, IDS)
    assert max(error(leaves[name].grad, expected[name]) for name in leaves) < 1e-3


def test_matrices_that_are_left_out_stay_at_the_base(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    name = "model.layers.1.mlp.down_proj"
    assert list(adapted.zero_delta([name])) == [name]
    few = {name: random_delta(adapted, 3)[name]}
    whole = adapted.zero_delta() | few
    with adapted.merged(as_z(whole)):
        expected = logits(adapted)
    with adapted.merged(as_z(few)):
        assert torch.equal(logits(adapted), expected)
    with adapted.training(few):
        assert torch.allclose(logits(adapted), expected, atol=1e-4)
    with adapted.rows({name: few[name].unsqueeze(0)}) as assign:
        assign([0] * 3)
        assert torch.allclose(logits(adapted), expected, atol=1e-4)


OWNERS = [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 2]]
LONG = torch.arange(6 * 40).view(6, 40) % 50  # enough tokens for merged weights
SHORT = LONG[:, :3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owners", OWNERS, ids=["even", "ragged"])
@pytest.mark.parametrize("ids", [SHORT, LONG], ids=["factored", "merged"])
def test_experts_side_by_side_have_the_logits_and_gradients_that_each_has_alone(
    load_adapted: Load, kind: str, owners: list[int], ids: Tensor
) -> None:
    for of_expert in side_by_side(load_adapted(kind), ids, owners):
        assert torch.allclose(of_expert.logits, of_expert.alone, atol=1e-3)
        for gradient, expected in of_expert.gradients:
            assert gradient is not None and expected is not None
            assert error(gradient, expected) < 2e-3


@pytest.mark.parametrize("ids", [SHORT, LONG], ids=["factored", "merged"])
def test_a_nan_in_one_expert_reaches_no_other(load_adapted: Load, ids: Tensor) -> None:
    adapted = load_adapted("llama")
    owners = OWNERS[1]
    healthy = torch.tensor(owners) != 0
    found = []
    for broken in (False, True):
        stack = {n: torch.stack([v, 2 * v, -v / 2]) for n, v in random_delta(adapted, 4).items()}
        if broken:
            for values in stack.values():
                values[0, 1] = float("nan")
        leaves = {name: values.requires_grad_() for name, values in stack.items()}
        with adapted.rows(leaves) as assign:
            assign(owners)
            output = adapted.base.model(ids).logits
            output.square().sum().backward()
        found.append((output.detach(), {name: leaf.grad for name, leaf in leaves.items()}))
    (clean, clean_gradients), (mixed, mixed_gradients) = found
    assert mixed[~healthy].isnan().all()
    assert torch.allclose(mixed[healthy], clean[healthy], atol=1e-4)
    for name, gradient in mixed_gradients.items():
        expected = clean_gradients[name]
        assert gradient is not None and expected is not None
        assert error(gradient[1:], expected[1:]) < 1e-3 and gradient[0].isnan().any()


def test_rows_and_tokens_may_come_flattened_into_one_axis(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    experts = [random_delta(adapted, seed) for seed in (1, 2)]
    for tokens in (4, 200):
        for name in ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"):
            layer = adapted.layers[name]
            assert isinstance(layer, torch.nn.Module)
            x = torch.randn(3, tokens, adapted.basis.factors[name][2].shape[1])
            with torch.no_grad(), adapted.rows({name: torch.stack([e[name] for e in experts])}) as assign:
                assign([0, 1, 1])
                assert torch.allclose(layer(x.flatten(0, 1)), layer(x).flatten(0, 1), atol=1e-5)


def test_rows_without_an_expert_are_refused(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    stack = {name: values.unsqueeze(0) for name, values in random_delta(adapted, 1).items()}
    with adapted.rows(stack), pytest.raises(RuntimeError, match="assign"):
        logits(adapted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_base_agrees_in_every_state_and_keeps_float32_gradients(
    model_directory: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    base = load_base_model(model_directory(kind), dtype=torch.bfloat16)
    adapted = AdaptedModel(base, load_basis(tmp_path, decompose_base(base, tmp_path)))
    plain, zero = logits(adapted, LONG), adapted.zero_delta()
    with adapted.training(zero):
        assert torch.equal(logits(adapted, LONG), plain)
    # Far enough from the base to be seen through the rounding of 8 bits.
    delta = {name: values.requires_grad_() for name, values in random_delta(adapted, 5).items()}
    with adapted.training(delta):
        output = adapted.base.model(LONG).logits
        output.float().square().mean().backward()
    training = output.detach()
    distance = error(training, plain)
    with adapted.merged(as_z({name: values.detach() for name, values in delta.items()})):
        assert error(logits(adapted, LONG), training) < distance / 5
    expected = slow_gradient(adapted, delta, LONG)
    for name, values in delta.items():
        assert values.grad is not None and values.grad.dtype == torch.float32
        assert error(values.grad, expected[name]) < 0.1
    stack = {name: values.detach().unsqueeze(0).requires_grad_() for name, values in delta.items()}
    for ids in (SHORT, LONG):
        with adapted.rows(stack) as assign:
            assign([0] * 6)
            assert error(logits(adapted, ids), training[:, : ids.shape[1]]) < distance / 5


def test_the_base_is_back_after_every_state_even_one_left_by_an_error(load_adapted: Load) -> None:
    adapted = load_adapted("gpt2")
    base, delta = logits(adapted), random_delta(adapted, 5)
    rows = {name: values.unsqueeze(0) for name, values in delta.items()}
    for state in (adapted.merged(as_z(delta)), adapted.training(delta), adapted.rows(rows)):
        with pytest.raises(ZeroDivisionError), state:
            raise ZeroDivisionError
        assert torch.equal(logits(adapted), base)
    assert not any("forward" in vars(layer) for layer in adapted.layers.values())


def test_two_experts_cannot_have_the_model_at_once(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    z = as_z(random_delta(adapted, 6))
    with adapted.merged(z), pytest.raises(RuntimeError, match="already in the state 'merged'"), adapted.merged(z):
        pass


def test_a_z_that_does_not_fit_the_basis_is_refused(load_adapted: Load) -> None:
    basis = load_adapted("llama").basis
    ones = {name: torch.ones_like(s) for name, (_, s, _) in basis.factors.items()}
    name = next(iter(ones))
    check_z(ones, basis)
    check_z({k: v for k, v in ones.items() if k != name}, basis)
    with pytest.raises(BasisMismatchError, match="lacks"):
        check_z({**ones, "model.layers.9.mlp": torch.ones(3)}, basis)
    with pytest.raises(BasisMismatchError, match="shape"):
        check_z({**ones, name: torch.ones(3)}, basis)
    with pytest.raises(ArtifactError, match="NaN"):
        check_z({**ones, name: torch.full_like(ones[name], float("nan"))}, basis)
    with pytest.raises(ArtifactError, match="float32"):
        check_z({**ones, name: ones[name].double()}, basis)


def test_a_basis_of_another_model_is_refused(load_adapted: Load, model_directory: Callable[[str], Path]) -> None:
    with pytest.raises(BasisMismatchError):
        AdaptedModel(load_base_model(model_directory("neox")), load_adapted("llama").basis)


def test_a_decomposition_that_was_cut_short_goes_on_where_it_stopped(
    model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    base = load_base_model(model_directory("llama"))
    fingerprint = decompose_base(base, tmp_path)
    kept, lost = tmp_path / "00001.safetensors", tmp_path / "00000.safetensors"
    inode = kept.stat().st_ino
    lost.write_bytes(lost.read_bytes()[:50])
    (tmp_path / "basis.json").unlink()
    progress: list[tuple[int, int]] = []
    assert decompose_base(base, tmp_path, on_matrix=lambda done, total: progress.append((done, total))) == fingerprint
    assert kept.stat().st_ino == inode
    assert progress == [(done, 14) for done in range(1, 15)]


def test_a_matrix_left_by_another_model_is_not_kept(
    model_directory: Callable[[str], Path], tiny: Any, tmp_path: Path
) -> None:
    other = load_base_model(tiny.save_tiny(tmp_path / "other", "llama", seed=9))
    base = load_base_model(model_directory("llama"))
    decompose_base(other, tmp_path / "basis")
    decompose_base(base, tmp_path / "clean")
    assert decompose_base(base, tmp_path / "basis") == decompose_base(base, tmp_path / "clean")


def test_a_basis_is_refused_under_another_fingerprint_or_with_a_changed_file(
    model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    fingerprint = decompose_base(load_base_model(model_directory("llama")), tmp_path)
    loaded: Basis = load_basis(tmp_path, fingerprint)
    assert loaded.parameters == sum(len(s) for _, s, _ in loaded.factors.values())
    with pytest.raises(BasisMismatchError):
        load_basis(tmp_path, "0" * 64)
    file = tmp_path / "00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BasisMismatchError, match="00003"):
        load_basis(tmp_path, fingerprint)
    file.unlink()
    with pytest.raises(ArtifactError, match="00003"):
        load_basis(tmp_path, fingerprint)


def test_a_twin_shares_the_weights_and_follows_an_expert_of_its_own(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    view = adapted.weight_sharing_view()
    ids = torch.tensor([[1, 2, 3, 4]])
    base = adapted.base.model(ids).logits
    assert all(
        one is other for one, other in zip(adapted.base.model.parameters(), view.base.model.parameters(), strict=True)
    )
    z = {name: torch.full((len(s),), 1.3) for name, (_, s, _) in adapted.basis.factors.items()}
    with view.merged(z):
        followed = view.base.model(ids).logits
        assert torch.equal(adapted.base.model(ids).logits, base)
        with adapted.merged({name: torch.full_like(value, 0.7) for name, value in z.items()}):
            assert torch.equal(view.base.model(ids).logits, followed)
    assert not torch.equal(followed, base)
    assert torch.equal(view.base.model(ids).logits, base)


def test_a_twin_is_made_of_a_model_whose_modules_remember_a_forward_in_training(tmp_path: Path) -> None:
    base = load_base_model(families.save_tiny(tmp_path / "model", "recurrent_gemma"))
    adapted = AdaptedModel(base, load_basis(tmp_path / "basis", decompose_base(base, tmp_path / "basis")))
    ids = torch.tensor([[5, 6, 7, 8]])
    with adapted.training({name: delta.requires_grad_() for name, delta in adapted.zero_delta().items()}):
        base.model(ids, use_cache=False)
    remembered = base.model.model.layers[0].temporal_block.rg_lru.recurrent_states
    assert remembered.requires_grad  # else there is nothing to see here
    view = adapted.weight_sharing_view()
    torch.testing.assert_close(
        view.base.model(ids, use_cache=False).logits, base.model(ids, use_cache=False).logits, atol=1e-5, rtol=1e-5
    )
