"""Cores train and merge as their formulas say, keep what they promise, and leave the base as they found it."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from zhub.errors import ArtifactError, TrainingError
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.model.core_model import CoreModel
from zhub_workers.model.cores import CoreSettings, make_cores, random_signs, rotation_change
from zhub_workers.model.layers import layer_weight

KINDS = ["llama", "gpt2", "neox"]
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [7, 7, 8, 40]])
FRAMES = CoreSettings("frames")
FULL = CoreSettings("core")
PROJECTED = CoreSettings("core", rank=3, parameters=5)
ALL = pytest.mark.parametrize("settings", [FRAMES, FULL, PROJECTED], ids=["frames", "full core", "projected core"])
Load = Callable[[str], AdaptedModel]


@torch.no_grad()
def logits(adapted: AdaptedModel) -> Tensor:
    answered: Tensor = adapted.base.model(IDS).logits
    return answered


def on_all_layers(adapted: AdaptedModel, settings: CoreSettings) -> CoreModel:
    return CoreModel(adapted, settings, adapted.layers)


def expert(model: CoreModel, size: float = 0.3, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(value.shape, generator=generator) for name, value in model.initial(0).items()}


def by_formula(adapted: AdaptedModel, settings: CoreSettings, parameters: dict[str, Tensor]) -> Tensor:
    """Logits in float64 of dense weights ``W + U_k C Vh_k``; the model is float64 afterwards."""
    adapted.base.model.double()
    weights = {}
    for name, layer in adapted.layers.items():
        weight = layer_weight(layer) + formula_change(adapted, settings, name, parameters[name])
        weights[f"{name}.weight"] = weight.T if isinstance(layer, Conv1D) else weight
    answered: Tensor = functional_call(adapted.base.model, weights, (IDS,)).logits
    return answered


def formula_change(adapted: AdaptedModel, settings: CoreSettings, name: str, own: Tensor) -> Tensor:
    u, s, vh = (factor.double() for factor in adapted.basis.factors[name])
    own = own.double()
    if settings.kind == "frames":
        k = round((1 + math.sqrt(1 + 8 * len(s))) / 2)
        skew = torch.zeros(k, k, dtype=torch.float64)
        position = 0
        for i in range(k):
            for j in range(i + 1, k):
                unit = torch.zeros(k, k, dtype=torch.float64)
                unit[i, j], unit[j, i] = 1, -1
                skew = skew + unit * own[position]
                position += 1
        skew = skew * s.norm() / s[:k].norm() / math.sqrt(k - 1)
        identity = torch.eye(k, dtype=torch.float64)
        rotation = torch.linalg.inv(identity - skew / 2) @ (identity + skew / 2)
        core = (rotation - identity) @ torch.diag(s[:k])
    else:
        k = settings.rank or round(math.sqrt(len(s)))
        entries = own
        if settings.parameters:
            signs = random_signs(name, settings.parameters, k).double()
            entries = sum(own[i] * signs[i] for i in range(settings.parameters)) / math.sqrt(settings.parameters)  # type: ignore[assignment]
        core = torch.diag(s[:k]) @ entries * s.norm() / s[:k].norm() / math.sqrt(k)
    change: Tensor = u[:, :k] @ core @ vh[:k]
    return change


@ALL
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_parameters_answer_bit_for_bit_like_the_base(
    load_adapted: Load, kind: str, settings: CoreSettings
) -> None:
    adapted = load_adapted(kind)
    model, before = on_all_layers(adapted, settings), logits(adapted)
    with model.merged(model.initial(0)):
        assert torch.equal(logits(adapted), before)
    with model.training(model.initial(0)):
        assert torch.equal(logits(adapted), before)


@ALL
@pytest.mark.parametrize("kind", KINDS)
def test_both_states_answer_like_the_dense_formula_in_double_precision(
    load_adapted: Load, kind: str, settings: CoreSettings
) -> None:
    adapted = load_adapted(kind)
    model, before = on_all_layers(adapted, settings), logits(adapted)
    parameters = expert(model)
    with model.merged(parameters):
        merged = logits(adapted)
    with model.training(parameters):
        training = logits(adapted)
    assert torch.equal(logits(adapted), before)
    formula = by_formula(load_adapted(kind), settings, parameters).float()
    assert not torch.allclose(formula, before, atol=1e-1)
    assert torch.allclose(merged, formula, atol=1e-4)
    assert torch.allclose(training, formula, atol=1e-4)


@ALL
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_through_dense_weights(load_adapted: Load, kind: str, settings: CoreSettings) -> None:
    adapted = load_adapted(kind)
    model = on_all_layers(adapted, settings)
    parameters = {name: value.requires_grad_() for name, value in expert(model).items()}
    with model.training(parameters):
        # Twice: an accumulated gradient has a backward for each micro-batch.
        for rows in (slice(0, 2), slice(2, 3)):
            (adapted.base.model(IDS[rows]).logits.square().sum() / 100).backward()
    doubles = {name: value.detach().double().requires_grad_() for name, value in parameters.items()}
    formula = by_formula(load_adapted(kind), settings, doubles).square().sum() / 100
    expected = torch.autograd.grad(formula, list(doubles.values()))
    for (name, value), gradient in zip(parameters.items(), expected, strict=True):
        assert value.grad is not None
        assert torch.allclose(value.grad.double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name
    assert all(parameter.grad is None for parameter in adapted.base.model.parameters())


@ALL
def test_no_tensor_as_large_as_a_weight_is_kept_for_the_backward(load_adapted: Load, settings: CoreSettings) -> None:
    adapted = load_adapted("llama")
    model = on_all_layers(adapted, settings)
    parameters = {name: value.requires_grad_() for name, value in expert(model).items()}
    owned = {parameter.data_ptr() for parameter in adapted.base.model.parameters()}
    shapes = {tuple(layer_weight(layer).shape) for layer in adapted.layers.values()}
    dense: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        shape = tuple(tensor.shape)
        if tensor.data_ptr() not in owned and (shape in shapes or shape[::-1] in shapes):
            dense.append(shape)
        return tensor

    with model.training(parameters), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        adapted.base.model(IDS).logits.square().sum().backward()
    assert dense == []


def test_frames_keep_every_singular_value_and_the_span(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    model = on_all_layers(adapted, FRAMES)
    own = {name: layer_weight(layer).clone() for name, layer in adapted.layers.items()}
    with model.merged(expert(model, size=2.0)):
        for name, layer in adapted.layers.items():
            weight = layer_weight(layer)
            assert not torch.allclose(weight, own[name], atol=1e-2)
            assert torch.allclose(torch.linalg.svdvals(weight), torch.linalg.svdvals(own[name]), atol=1e-4)


def test_a_rotation_is_orthogonal_however_large_the_parameters() -> None:
    upper = 30 * torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).triu(1)
    rotation = torch.eye(9, dtype=torch.float64) + rotation_change(upper - upper.T)
    assert torch.allclose(rotation @ rotation.T, torch.eye(9, dtype=torch.float64), atol=1e-9)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)


@ALL
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_every_parameter_changes_a_weight_by_its_share_of_the_norm(
    load_adapted: Load, kind: str, settings: CoreSettings
) -> None:
    adapted = load_adapted(kind)
    model = on_all_layers(adapted, settings)
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(20):  # the random matrices of a projected core add up by chance
        step = {
            name: 1e-3 * torch.randn(value.shape, generator=generator).sign()
            for name, value in model.initial(0).items()
        }
        for name, core in model.cores(step).items():
            u, vh = adapted.leading(name, len(core))
            shares.append(float((u @ core @ vh).norm() / layer_weight(adapted.layers[name]).norm()))
    # SVF: the change U diag(s delta) Vh of deltas ±e has the norm e |s|, the share e.
    assert math.sqrt(sum(share**2 for share in shares) / len(shares)) == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize(("r", "frames", "core"), [(576, 561, 576), (64, 66, 64), (896, 903, 900)])
def test_a_matrix_has_about_as_many_parameters_as_singular_values(r: int, frames: int, core: int) -> None:
    s = {"w": torch.linspace(2, 1, r)}
    assert make_cores(FRAMES, s).initial()["w"].numel() == frames
    assert make_cores(FULL, s).initial()["w"].numel() == core


def test_a_matrix_of_one_singular_value_has_no_frame_to_turn() -> None:
    values = {"gate": torch.ones(1), "up": torch.tensor([3.0, 2.0, 1.0])}
    assert set(make_cores(FRAMES, values).initial()) == {"up"}
    assert set(make_cores(FULL, values).initial()) == {"gate", "up"}
    with pytest.raises(TrainingError, match="adapter 'svf'"):
        make_cores(FRAMES, {"gate": torch.ones(1)})


def test_random_signs_are_those_of_the_name_alone() -> None:
    signs = random_signs("model.layers.0.mlp.up_proj", 5, 3)
    assert torch.equal(signs, random_signs("model.layers.0.mlp.up_proj", 5, 3))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert not torch.equal(signs, random_signs("model.layers.1.mlp.up_proj", 5, 3))
    # By another way, because an artifact holds the weights of these signs alone: they may never change.
    bits = int.from_bytes(hashlib.shake_256(b"w|3|5").digest(10), "little")
    by_hand = [2.0 * (bits >> position & 1) - 1 for position in range(75)]
    assert random_signs("w", 3, 5).flatten().tolist() == by_hand
    assert abs(float(random_signs("w", 64, 32).mean())) < 0.02


@ALL
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_half_precision_base_has_parameters_and_gradients_in_float32(
    model_directory: Callable[[str], Path], tmp_path: Path, kind: str, settings: CoreSettings
) -> None:
    def load() -> AdaptedModel:
        base = load_base_model(model_directory(kind), dtype=torch.bfloat16)
        return AdaptedModel(base, load_basis(tmp_path, decompose_base(base, tmp_path)))

    adapted = load()
    model, before = on_all_layers(adapted, settings), logits(adapted)
    for state in (model.merged, model.training):
        with state(model.initial(0)):
            assert torch.equal(logits(adapted), before)
    parameters = {name: value.requires_grad_() for name, value in expert(model).items()}
    with model.training(parameters):
        training: Any = adapted.base.model(IDS).logits
        training.float().square().mean().backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in parameters.values())
    formula = by_formula(load(), settings, parameters).detach()
    assert float((training.detach().double() - formula).std()) < 0.05 * float(formula.std())
    with model.merged(parameters):
        assert float((logits(adapted).double() - formula).std()) < 0.05 * float(formula.std())


def test_parameters_that_do_not_fit_are_refused(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    model = on_all_layers(adapted, FULL)
    parameters = expert(model)
    name = "model.layers.0.mlp.down_proj"
    for state in (model.merged, model.training):
        with pytest.raises(ArtifactError, match=f"'{name}' is only in one"), state(without(parameters, name)):
            pass
        with pytest.raises(ArtifactError, match=r"\(2, 2\).*expected \(6, 6\)"):
            state({**parameters, name: torch.zeros(2, 2)}).__enter__()
        with pytest.raises(ArtifactError, match=r"float64, expected .* float32"):
            state({**parameters, name: parameters[name].double()}).__enter__()
    with pytest.raises(ArtifactError, match="NaN"):
        model.merged({**parameters, name: parameters[name] * float("nan")}).__enter__()


def without(parameters: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: value for other, value in parameters.items() if other != name}


def test_cores_cannot_have_a_model_that_multipliers_have(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    model = on_all_layers(adapted, FRAMES)
    with (
        adapted.training(adapted.zero_delta()),
        pytest.raises(RuntimeError, match="already in the state 'training'"),
        model.training(model.initial(0)),
    ):
        pass
