"""A LoRA trains and merges as its formula says, and leaves the base as it found it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from zhub.errors import ArtifactError, TrainingError
from zhub_workers.model.base_model import BaseModel, load_base_model, weights_fingerprint
from zhub_workers.model.layers import layer_weight, linear_layers
from zhub_workers.model.lora import LoraModel

KINDS = ["llama", "gpt2", "neox"]
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [7, 7, 8, 40]])
RANK, ALPHA = 3, 7.0
Load = Callable[[str], BaseModel]


@pytest.fixture
def load(model_directory: Callable[[str], Path]) -> Load:
    return lambda kind: load_base_model(model_directory(kind))


@torch.no_grad()
def logits(base: BaseModel) -> Tensor:
    found: Tensor = base.model(IDS).logits
    return found


def on_all_layers(base: BaseModel) -> LoraModel:
    return LoraModel(base, rank=RANK, alpha=ALPHA, names=linear_layers(base.model))


def expert(lora: LoraModel, seed: int = 1) -> dict[str, Tensor]:
    """Values with a B that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    values = lora.initial(seed)
    return {
        key: 0.3 * torch.randn(value.shape, generator=generator) if key.endswith("lora_B") else value
        for key, value in values.items()
    }


def by_formula(base: BaseModel, values: dict[str, Tensor]) -> Tensor:
    """Logits in float64 of the model with the weights ``W + (alpha / rank) B A``; ``base`` is float64 afterwards."""
    base.model.double()
    weights: dict[str, Tensor] = {}
    for name, layer in linear_layers(base.model).items():
        if f"{name}.lora_A" in values:
            weight = layer_weight(layer) + formula_change(values, name)
            weights[f"{name}.weight"] = weight.T if isinstance(layer, Conv1D) else weight
    found: Tensor = functional_call(base.model, weights, (IDS,)).logits
    return found


def formula_change(values: dict[str, Tensor], name: str) -> Tensor:
    return ALPHA / RANK * values[f"{name}.lora_B"].double() @ values[f"{name}.lora_A"].double()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_values_answer_bit_for_bit_like_the_base_in_every_state(load: Load, kind: str) -> None:
    base = load(kind)
    lora, before = on_all_layers(base), logits(base)
    with lora.merged(lora.initial(0)):
        assert torch.equal(logits(base), before)
    with lora.training(lora.initial(0)):
        assert torch.equal(logits(base), before)


@pytest.mark.parametrize("kind", KINDS)
def test_both_states_answer_like_the_formula_in_double_precision(load: Load, kind: str) -> None:
    base = load(kind)
    lora, before = on_all_layers(base), logits(base)
    values = expert(lora)
    with lora.merged(values):
        merged = logits(base)
    with lora.training(values):
        training = logits(base)
    formula = by_formula(load(kind), values).float()
    assert not torch.allclose(formula, before, atol=1e-1)
    assert torch.allclose(merged, formula, atol=1e-4)
    assert torch.allclose(training, formula, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_formula_and_ends_in_the_values(load: Load, kind: str) -> None:
    base = load(kind)
    lora = on_all_layers(base)
    values = {key: value.requires_grad_() for key, value in expert(lora).items()}
    with lora.training(values):
        loss: Any = base.model(IDS).logits.square().mean()
        loss.backward()
    doubles = {key: value.detach().double().requires_grad_() for key, value in values.items()}
    expected = torch.autograd.grad(by_formula(load(kind), doubles).square().mean(), list(doubles.values()))
    for (key, value), gradient in zip(values.items(), expected, strict=True):
        assert value.grad is not None and value.grad.dtype == torch.float32
        assert torch.allclose(value.grad.double(), gradient, rtol=1e-3, atol=1e-5), key
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_back_after_every_state_even_one_left_by_an_error(load: Load, kind: str) -> None:
    base = load(kind)
    modules, weights = list(base.model.named_modules()), [layer.weight for layer in linear_layers(base.model).values()]
    fingerprint, attributes, before = weights_fingerprint(base.model), set(vars(base.model)), logits(base)
    lora = on_all_layers(base)
    values = expert(lora)
    for state in (lora.merged(values), lora.training(values)):
        with pytest.raises(ZeroDivisionError), state:
            assert not torch.equal(logits(base), before)
            raise ZeroDivisionError
        assert torch.equal(logits(base), before)
        assert list(base.model.named_modules()) == modules
        assert all(
            layer.weight is weight for layer, weight in zip(linear_layers(base.model).values(), weights, strict=True)
        )
        assert weights_fingerprint(base.model) == fingerprint
        assert set(vars(base.model)) == attributes


def test_a_state_can_be_entered_again_with_other_values(load: Load) -> None:
    base = load("llama")
    lora = on_all_layers(base)
    first, second = expert(lora, 1), expert(lora, 2)
    with lora.training(first):
        answers = logits(base)
    with lora.training(second):
        assert not torch.allclose(logits(base), answers, atol=1e-2)
    with lora.training(first):
        assert torch.equal(logits(base), answers)


def test_two_loras_cannot_have_the_model_at_once(load: Load) -> None:
    lora = on_all_layers(load("llama"))
    values = lora.initial(0)
    with lora.merged(values), pytest.raises(RuntimeError, match="already in the state 'merged'"), lora.training(values):
        pass


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_half_precision_base_has_matrices_and_gradients_in_float32(
    model_directory: Callable[[str], Path], kind: str
) -> None:
    base = load_base_model(model_directory(kind), dtype=torch.bfloat16)
    lora, before = on_all_layers(base), logits(base)
    assert before.dtype == torch.bfloat16
    with lora.merged(lora.initial(0)):
        assert torch.equal(logits(base), before)
    with lora.training(lora.initial(0)):
        assert torch.equal(logits(base), before)
    values = {key: value.requires_grad_() for key, value in expert(lora).items()}
    with lora.training(values):
        training = base.model(IDS).logits
        training.float().square().mean().backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in values.values())
    formula = by_formula(load_base_model(model_directory(kind), dtype=torch.bfloat16), values).detach()
    spread = float(formula.std())
    assert float((training.detach().double() - formula).std()) < 0.05 * spread
    with lora.merged(values):
        assert float((logits(base).double() - formula).std()) < 0.05 * spread


def test_a_merged_half_precision_weight_is_rounded_once(model_directory: Callable[[str], Path]) -> None:
    base = load_base_model(model_directory("llama"), dtype=torch.bfloat16)
    lora = on_all_layers(base)
    values = expert(lora)
    own = {name: layer_weight(layer).clone() for name, layer in lora.layers.items()}
    with lora.merged(values):
        for name, layer in lora.layers.items():
            exact = own[name].double() + formula_change(values, name)
            # bfloat16 has 8 significant bits: half a unit in the last is at most 2**-8 of the value. The rest is for
            # the product, made in float32.
            assert bool(((layer_weight(layer).double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all())


def test_only_the_named_layers_change(load: Load) -> None:
    base = load("llama")
    names = ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    lora = LoraModel(base, rank=RANK, alpha=ALPHA, names=names)
    values = expert(lora)
    assert sorted(values) == sorted(f"{name}.{part}" for name in names for part in ("lora_A", "lora_B"))
    own = {name: layer.weight for name, layer in linear_layers(base.model).items()}
    formula = by_formula(load("llama"), values).float()
    with lora.merged(values):
        changed = {name for name, layer in linear_layers(base.model).items() if layer.weight is not own[name]}
        assert torch.allclose(logits(base), formula, atol=1e-4)
    assert changed == set(names)
    with lora.training(values):
        assert torch.allclose(logits(base), formula, atol=1e-4)


def test_a_layer_that_two_blocks_share_follows_the_expert_in_both(load: Load) -> None:
    base = load("gpt2")
    blocks = base.model.transformer.h
    blocks[1].mlp.c_fc = blocks[0].mlp.c_fc
    lora = on_all_layers(base)
    values = expert(lora)
    with lora.merged(values):
        merged = logits(base)
    with lora.training(values):
        assert torch.allclose(logits(base), merged, atol=1e-4)
    assert blocks[1].mlp.c_fc is blocks[0].mlp.c_fc


def test_a_seed_gives_the_same_first_values_and_leaves_the_global_generator_alone(load: Load) -> None:
    base = load("llama")
    state = torch.random.get_rng_state()
    lora = on_all_layers(base)
    first, again, other = lora.initial(4), lora.initial(4), lora.initial(5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert all(value.is_leaf and not value.requires_grad and value.dtype == torch.float32 for value in first.values())


def test_the_first_values_are_those_that_peft_draws(load: Load) -> None:
    name = "model.layers.0.mlp.down_proj"
    base = load("llama")
    ours = LoraModel(base, rank=RANK, alpha=ALPHA, names=[name]).initial(11)
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, target_modules=[name]), load("llama").model)
    layer: Any = theirs.get_submodule(name)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        layer.reset_lora_parameters("default", True)
    assert torch.equal(ours[f"{name}.lora_A"], layer.lora_A["default"].weight)
    assert torch.equal(ours[f"{name}.lora_B"], layer.lora_B["default"].weight)


def test_values_that_do_not_fit_are_refused(load: Load) -> None:
    lora = on_all_layers(load("llama"))
    values = expert(lora)
    key = "model.layers.0.mlp.down_proj.lora_A"
    turned = values[key].T
    for state in (lora.merged, lora.training):
        with pytest.raises(ArtifactError, match=f"'{key}' is only in one"), state(without(values, key)):
            pass
        with pytest.raises(ArtifactError, match="shape .64, 3., expected .3, 64."), state({**values, key: turned}):
            pass
        with pytest.raises(ArtifactError, match="expected torch.float32"), state({**values, key: values[key].double()}):
            pass
    with pytest.raises(ArtifactError, match="NaN"), lora.merged({**values, key: values[key] * float("inf")}):
        pass


def without(values: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["model.layers.9.mlp.up_proj"]}, "no linear layer 'model.layers.9.mlp.up_proj'"),
        ({"names": ["lm_head"]}, "no linear layer 'lm_head'"),
        ({"names": []}, "no layer"),
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"alpha": float("nan")}, "alpha nan"),
    ],
)
def test_a_lora_that_cannot_be_trained_is_refused(load: Load, arguments: dict[str, Any], message: str) -> None:
    fitting = {"rank": RANK, "alpha": ALPHA, "names": ["model.layers.0.mlp.up_proj"]}
    with pytest.raises(TrainingError, match=message):
        LoraModel(load("llama"), **{**fitting, **arguments})


# peft 0.21 asks for a property that transformers 5 has renamed.
