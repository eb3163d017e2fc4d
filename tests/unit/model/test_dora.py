"""A DoRA trains and merges as its formula says, and leaves the base as it found it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from zhub.errors import TrainingError
from zhub_workers.model.base_model import BaseModel, load_base_model
from zhub_workers.model.layers import layer_weight, linear_layers
from zhub_workers.model.lora import LoraModel

KINDS = ["llama", "gpt2", "neox"]
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [7, 7, 8, 40]])
RANK, ALPHA = 3, 7.0
MAGNITUDE = "lora_magnitude_vector"
Load = Callable[..., BaseModel]


@pytest.fixture
def load(model_directory: Callable[[str], Path]) -> Load:
    return lambda kind, dtype=torch.float32: load_base_model(model_directory(kind), dtype=dtype)


@torch.no_grad()
def logits(base: BaseModel) -> Tensor:
    answered: Tensor = base.model(IDS).logits
    return answered


def on_all_layers(base: BaseModel) -> LoraModel:
    return LoraModel(base, rank=RANK, alpha=ALPHA, names=linear_layers(base.model), dora=True)


def expert(dora: LoraModel) -> dict[str, Tensor]:
    """Values with a B that is not zero, and lengths that are not the base's."""
    generator = torch.Generator().manual_seed(1)
    values = dora.initial(1)
    for key, value in values.items():
        if key.endswith("lora_B"):
            values[key] = 0.3 * torch.randn(value.shape, generator=generator)
        elif key.endswith(MAGNITUDE):
            values[key] = value * (1 + 0.2 * torch.rand(value.shape, generator=generator))
    return values


def by_formula(base: BaseModel, values: dict[str, Tensor]) -> Tensor:
    """Logits in float64 of ``W' = m / |W + c B A| * (W + c B A)`` by rows, the length a constant to the gradient."""
    base.model.double()
    weights = {}
    for name, layer in linear_layers(base.model).items():
        changed = layer_weight(layer) + ALPHA / RANK * values[f"{name}.lora_B"] @ values[f"{name}.lora_A"]
        lengths = changed.detach().square().sum(1).sqrt()
        weight = (values[f"{name}.{MAGNITUDE}"] / lengths).unsqueeze(1) * changed
        weights[f"{name}.weight"] = weight.T if isinstance(layer, Conv1D) else weight
    answered: Tensor = functional_call(base.model, weights, (IDS,)).logits
    return answered


def doubled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().double().requires_grad_() for key, value in values.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_values_answer_bit_for_bit_like_the_base(load: Load, kind: str, dtype: torch.dtype) -> None:
    base = load(kind, dtype)
    dora, before = on_all_layers(base), logits(base)
    for state in (dora.merged, dora.training):
        with state(dora.initial(0)):
            assert torch.equal(logits(base), before)
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize("kind", KINDS)
def test_both_states_answer_like_the_formula_in_double_precision(load: Load, kind: str) -> None:
    base = load(kind)
    dora, before = on_all_layers(base), logits(base)
    values = expert(dora)
    with dora.merged(values):
        merged = logits(base)
    with dora.training(values):
        training = logits(base)
    assert torch.equal(logits(base), before)
    formula = by_formula(load(kind), doubled(values)).detach().float()
    assert not torch.allclose(formula, before, atol=1e-1)
    assert torch.allclose(merged, formula, atol=1e-4)
    assert torch.allclose(training, formula, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_formula(load: Load, kind: str) -> None:
    base = load(kind)
    dora = on_all_layers(base)
    values = {key: value.requires_grad_() for key, value in expert(dora).items()}
    with dora.training(values):
        loss: Any = base.model(IDS).logits.square().mean()
        loss.backward()
    doubles = doubled(values)
    expected = torch.autograd.grad(by_formula(load(kind), doubles).square().mean(), list(doubles.values()))
    for (key, value), gradient in zip(values.items(), expected, strict=True):
        assert value.grad is not None
        assert torch.allclose(value.grad.double(), gradient, rtol=1e-3, atol=1e-5), key


def test_a_row_of_zeros_is_refused_by_name(load: Load) -> None:
    base = load("llama")
    name = "model.layers.1.mlp.up_proj"
    with torch.no_grad():
        layer_weight(linear_layers(base.model)[name])[3] = 0
    with pytest.raises(TrainingError, match=f"row of '{name}' is zero"):
        on_all_layers(base)
