"""An expert followed farther, less far, or in some layers alone: what that makes of its change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from following import IDS, changed_logits

from zhub.errors import InvalidRequestError
from zhub.manifest import sha256_file
from zhub.recipes import SupervisedHyperparameters
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import adapter_settings, block_of, make_adapter
from zhub_workers.model.artifact import ExpertFile, write_expert
from zhub_workers.model.changes import Change, mix_changes, read_change, restricted
from zhub_workers.model.row_changes import following_rows

KINDS = ["svf", "frames", "core", "lora", "dora"]
Load = Callable[[str], AdaptedModel]


@pytest.fixture(params=["llama", "gpt2"])
def adapted(load_adapted: Load, request: pytest.FixtureRequest) -> AdaptedModel:
    return load_adapted(request.param)


@pytest.fixture(params=KINDS)
def change(adapted: AdaptedModel, tmp_path: Path, request: pytest.FixtureRequest) -> Change:
    """What an expert with random values changes."""
    asked: dict[str, Any] = {"adapter": request.param}
    hyper = SupervisedHyperparameters(n_steps=1, **asked)
    adapter = make_adapter(adapted, hyper)
    generator = torch.Generator().manual_seed(3)
    parameters = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in adapter.initial(0).items()
    }
    file = ExpertFile(hyper.adapter, adapter.exported(adapter.values(parameters)), adapter_settings(hyper))
    path = tmp_path / "expert"
    write_expert(path, file, basis_fingerprint=adapted.basis.fingerprint, base_model="tiny")
    return read_change(path, sha256=sha256_file(path), adapted=adapted)


def test_a_weight_of_one_is_the_expert(adapted: AdaptedModel, change: Change) -> None:
    assert torch.equal(changed_logits(adapted, mix_changes([change], [1.0])), changed_logits(adapted, change))


def test_a_weight_of_zero_is_the_base_bit_for_bit(adapted: AdaptedModel, change: Change) -> None:
    with torch.no_grad():
        base = adapted.base.model(IDS).logits
    assert not torch.allclose(changed_logits(adapted, change), base, atol=1e-2), "the expert must change something"
    assert torch.equal(changed_logits(adapted, mix_changes([change], [0.0])), base)
    assert torch.equal(changed_logits(adapted, mix_changes([change, change], [0.0, 0.0])), base)


def test_a_part_of_weight_zero_leaves_the_others_as_they_are(adapted: AdaptedModel, change: Change) -> None:
    assert mix_changes([Change(), change], [0.0, 1.0]) is change


def test_an_expert_in_two_halves_of_the_layers_is_the_expert(adapted: AdaptedModel, change: Change) -> None:
    blocks = sorted({block for name in adapted.layers if (block := block_of(name)) is not None})
    halves = [restricted(change, blocks[:1], adapted), restricted(change, blocks[1:], adapted)]
    whole = changed_logits(adapted, change)
    assert torch.allclose(changed_logits(adapted, mix_changes(halves, [1.0, 1.0])), whole, atol=1e-5)
    for half in halves:
        assert not torch.allclose(changed_logits(adapted, half), whole, atol=1e-3)


def test_an_expert_in_one_layer_leaves_the_hidden_states_before_it_as_they_are(
    adapted: AdaptedModel, change: Change
) -> None:
    last = max(block for name in adapted.layers if (block := block_of(name)) is not None)

    @torch.no_grad()
    def hidden(followed: Change) -> Any:
        with following_rows(adapted, [followed]) as assign:
            assign([0] * len(IDS))
            return adapted.base.model(IDS, output_hidden_states=True).hidden_states

    before, after = hidden(Change()), hidden(restricted(change, [last], adapted))
    for block in range(last + 1):  # what each block is given
        assert torch.equal(after[block], before[block])
    assert not torch.allclose(after[last + 1], before[last + 1], atol=1e-4)


def test_a_layer_that_the_base_lacks_is_named_with_those_that_it_has(adapted: AdaptedModel, change: Change) -> None:
    last = max(block for name in adapted.layers if (block := block_of(name)) is not None)
    with pytest.raises(InvalidRequestError, match=f"no layer {last + 1}: .* 0-{last}"):
        restricted(change, [0, last + 1], adapted)


@pytest.mark.parametrize("weight", [-1.5, 0.5, 3.0])
def test_a_weight_scales_how_far_each_multiplier_is_from_one(load_adapted: Load, tmp_path: Path, weight: float) -> None:
    adapted = load_adapted("llama")
    z = {name: 1 + torch.linspace(-0.5, 0.5, len(s)) for name, (_, s, _) in adapted.basis.factors.items()}
    amplified = mix_changes([Change(z=z)], [weight]).z
    for name, multipliers in z.items():
        assert torch.allclose(amplified[name], 1 + weight * (multipliers - 1), atol=1e-6)
