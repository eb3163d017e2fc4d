"""The states of an adapted model agree with each other, and a delta of zeros is the base itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zhub.errors import ArtifactError, BasisMismatchError
from zhub_workers.adapted import AdaptedModel
from zhub_workers.base_model import load_base_model
from zhub_workers.basis import Basis, check_z, decompose_base, load_basis

KINDS = ["llama", "gpt2", "neox"]
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [7, 7, 8, 40]])
Load = Callable[[str], AdaptedModel]


@torch.no_grad()
def logits(adapted: AdaptedModel, ids: Tensor = IDS) -> Tensor:
    found: Tensor = adapted.base.model(ids).logits
    return found


def random_delta(adapted: AdaptedModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(zeros.shape, generator=generator) for name, zeros in adapted.zero_delta().items()}


def as_z(delta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 1 + values for name, values in delta.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_of_zeros_answers_bit_for_bit_like_the_base_in_every_state(load_adapted: Load, kind: str) -> None:
    adapted = load_adapted(kind)
    base, zero = logits(adapted), adapted.zero_delta()
    with adapted.merged(as_z(zero)):
        assert torch.equal(logits(adapted), base)
    with adapted.training(zero):
        assert torch.equal(logits(adapted), base)
    with adapted.rows({name: values.expand(3, -1) for name, values in zero.items()}):
        assert torch.equal(logits(adapted), base)


@pytest.mark.parametrize("kind", KINDS)
def test_all_states_agree_on_an_expert(load_adapted: Load, kind: str) -> None:
    adapted = load_adapted(kind)
    base, delta = logits(adapted), random_delta(adapted, 1)
    with adapted.merged(as_z(delta)):
        merged = logits(adapted)
    with adapted.training(delta):
        training = logits(adapted)
    with adapted.rows({name: values.expand(3, -1) for name, values in delta.items()}):
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
    with adapted.rows(stacked):
        mixed = logits(adapted)
    for row, expert in ((0, first), (2, second)):
        with adapted.merged(as_z(expert)):
            assert torch.allclose(mixed[row], logits(adapted)[row], atol=1e-4)
    assert torch.equal(mixed[1], base[1])


def test_rows_that_leave_the_batch_take_their_expert_along(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    stacked = {name: torch.stack([values, 2 * values, 3 * values]) for name, values in random_delta(adapted, 4).items()}
    with adapted.rows(stacked) as keep:
        before = logits(adapted)
        keep(torch.tensor([2]))
        assert torch.allclose(logits(adapted, IDS[2:]), before[2:], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_in_the_training_state_reaches_every_matrix(load_adapted: Load, kind: str) -> None:
    adapted = load_adapted(kind)
    delta = {name: zeros.requires_grad_() for name, zeros in adapted.zero_delta().items()}
    with adapted.training(delta):
        adapted.base.model(IDS).logits.square().sum().backward()
    assert all(values.grad is not None and values.grad.abs().sum() > 0 for values in delta.values())


def test_the_gradient_of_one_multiplier_is_its_finite_difference(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    delta = {name: zeros.requires_grad_() for name, zeros in adapted.zero_delta().items()}
    name = "model.layers.0.mlp.up_proj"
    with adapted.training(delta):
        adapted.base.model(IDS).logits.square().mean().backward()
    ends = []
    for step in (1e-2, -1e-2):
        moved = as_z(adapted.zero_delta())
        moved[name][0] += step
        with adapted.merged(moved):
            ends.append(float(logits(adapted).square().mean()))
    gradient = delta[name].grad
    assert gradient is not None
    assert float(gradient[0]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=2e-2, abs=1e-4)


def test_the_base_is_back_after_every_state_even_one_left_by_an_error(load_adapted: Load) -> None:
    adapted = load_adapted("gpt2")
    base, delta = logits(adapted), random_delta(adapted, 5)
    rows = {name: values.expand(3, -1) for name, values in delta.items()}
    for state in (adapted.merged(as_z(delta)), adapted.training(delta), adapted.rows(rows)):
        with pytest.raises(ZeroDivisionError), state:
            logits(adapted)
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
    with pytest.raises(BasisMismatchError, match="only in one"):
        check_z({k: v for k, v in ones.items() if k != name}, basis)
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
