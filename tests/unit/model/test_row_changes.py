"""Rows of one batch follow experts of different kinds, each as if it were merged into the weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from zhub.errors import ArtifactError
from zhub.manifest import sha256_file
from zhub.recipes import AdapterKind, SupervisedHyperparameters
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import adapter_settings, make_adapter
from zhub_workers.model.artifact import ExpertFile, write_expert
from zhub_workers.model.changes import Change, mix_changes, read_change
from zhub_workers.model.layers import layer_weight
from zhub_workers.model.row_changes import following_rows

KINDS: list[dict[str, Any]] = [
    {"adapter": "svf"},
    {"adapter": "frames"},
    {"adapter": "core", "subspace_rank": 4},
    {"adapter": "core", "core_parameters": 6, "core_shared": True, "subspace_rank": 3},
    {"adapter": "lora", "lora_rank": 2, "lora_alpha": 4.0},
    {"adapter": "dora", "lora_rank": 3, "lora_alpha": 6.0},
]
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [7, 7, 8, 40]])
Load = Callable[[str], AdaptedModel]


class Trained:
    """An expert of one kind with random values: its file, and the adapter that trained it."""

    def __init__(self, adapted: AdaptedModel, path: Path, seed: int, **asked: Any) -> None:
        hyper = SupervisedHyperparameters(n_steps=1, **asked)
        generator = torch.Generator().manual_seed(seed)
        self.adapter = make_adapter(adapted, hyper)
        parameters = {
            name: value + 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in self.adapter.initial(seed).items()
        }
        self.values = self.adapter.values(parameters)
        file = ExpertFile(hyper.adapter, self.adapter.exported(self.values), adapter_settings(hyper))
        write_expert(path, file, basis_fingerprint=adapted.basis.fingerprint, base_model="tiny")
        self.change = read_change(path, sha256=sha256_file(path), adapted=adapted)

    def dense_changes(self, adapted: AdaptedModel) -> dict[str, Tensor]:
        """What is added to each weight, float64."""
        own = {name: layer_weight(layer).clone() for name, layer in adapted.layers.items()}
        with self.adapter.merged(self.values):
            return {name: layer_weight(layer).double() - own[name] for name, layer in adapted.layers.items()}


@pytest.fixture(params=["llama", "gpt2", "neox"])
def adapted(load_adapted: Load, request: pytest.FixtureRequest) -> AdaptedModel:
    return load_adapted(request.param)


@pytest.fixture
def trained(adapted: AdaptedModel, tmp_path: Path) -> list[Trained]:
    return [Trained(adapted, tmp_path / f"{number}", number, **asked) for number, asked in enumerate(KINDS)]


@torch.no_grad()
def logits(adapted: AdaptedModel, ids: Tensor) -> Tensor:
    answered: Tensor = adapted.base.model(ids).logits
    return answered


def test_the_kinds_of_these_tests_are_all_that_there_are() -> None:
    assert {asked["adapter"] for asked in KINDS} == set(get_args(AdapterKind))


def test_rows_of_one_batch_answer_as_their_experts_do_when_merged(
    adapted: AdaptedModel, trained: list[Trained]
) -> None:
    before = logits(adapted, IDS)
    alone = []
    for expert in trained:
        with expert.adapter.merged(expert.values):
            alone.append(logits(adapted, IDS))
    owners = sorted([*range(len(trained)), len(trained)] * len(IDS))
    with torch.no_grad(), following_rows(adapted, [*(expert.change for expert in trained), Change()]) as assign:
        assign(owners)
        together = torch.split(logits(adapted, IDS.repeat(len(trained) + 1, 1)), len(IDS))
    for merged, rows in zip(alone, together, strict=False):
        assert not torch.allclose(merged, before, atol=1e-1)
        assert torch.allclose(rows, merged, atol=2e-4)
    assert torch.allclose(together[-1], before, atol=1e-5)
    assert torch.equal(logits(adapted, IDS), before)


def test_rows_that_leave_the_batch_take_their_experts_with_them(adapted: AdaptedModel, trained: list[Trained]) -> None:
    with torch.no_grad(), following_rows(adapted, [expert.change for expert in trained]) as assign:
        assign(list(range(len(trained))))
        all_rows = logits(adapted, IDS[:1].repeat(len(trained), 1))
        assign([1, 4, 5])
        assert torch.allclose(logits(adapted, IDS[:1].repeat(3, 1)), all_rows[[1, 4, 5]], atol=1e-5)


def test_a_mixture_of_all_kinds_is_the_weighted_sum_of_their_changes(
    adapted: AdaptedModel, trained: list[Trained]
) -> None:
    weights = [0.5, -0.3, 0.4, 0.7, 0.6, 0.25]
    dense = [expert.dense_changes(adapted) for expert in trained]
    other = copy.deepcopy(adapted.base.model)
    layers = dict(other.named_modules())
    with torch.no_grad():
        for name in adapted.layers:
            total = sum(weight * change[name] for weight, change in zip(weights, dense, strict=True))
            layer_weight(layers[name]).add_(total.float())  # type: ignore[union-attr]
        expected = other(IDS).logits
    mixture = mix_changes([expert.change for expert in trained], weights)
    with torch.no_grad(), following_rows(adapted, [Change(), mixture]) as assign:
        assign([0, 1, 1, 1])
        answered = logits(adapted, torch.cat([IDS[:1], IDS]))
    assert torch.allclose(answered[1:], expected, atol=1e-3)


def test_changes_without_multipliers_take_no_merged_weights(
    load_adapted: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = load_adapted("llama")
    trained = [Trained(adapted, tmp_path / f"{number}", number, **asked) for number, asked in enumerate(KINDS)]
    stacks: list[set[int]] = []
    rows = AdaptedModel.rows

    def noted(self: AdaptedModel, stack: dict[str, Tensor]) -> Any:
        stacks.append({len(deltas) for deltas in stack.values()})
        return rows(self, stack)

    monkeypatch.setattr(AdaptedModel, "rows", noted)
    with following_rows(adapted, [Change(), *(expert.change for expert in trained[::-1])]):
        pass
    with following_rows(adapted, [expert.change for expert in trained[1:]]):
        pass
    assert stacks == [{2}, set()]  # one for all that have none, and the SVF


def test_a_batch_of_the_base_alone_is_the_base_bit_for_bit(adapted: AdaptedModel) -> None:
    before = logits(adapted, IDS)
    with torch.no_grad(), following_rows(adapted, [Change()]) as assign:
        assign([0, 0, 0])
        assert torch.equal(logits(adapted, IDS), before)


def test_an_error_in_a_batch_leaves_the_base_as_it_was(adapted: AdaptedModel, trained: list[Trained]) -> None:
    before = logits(adapted, IDS)
    with pytest.raises(ZeroDivisionError), following_rows(adapted, [expert.change for expert in trained]):
        raise ZeroDivisionError
    assert torch.equal(logits(adapted, IDS), before)
    assert all("forward" not in vars(layer) for layer in adapted.layers.values())


def test_tensors_that_do_not_fit_the_model_are_refused_by_name(adapted: AdaptedModel, tmp_path: Path) -> None:
    name = min(adapted.layers)
    strange: list[tuple[AdapterKind, dict[str, Tensor], dict[str, Any], str]] = [
        ("core", {"lm_head": torch.zeros(4, 4)}, {"rank": 4, "parameters": 0}, "lm_head"),
        ("core", {name: torch.zeros(5, 4)}, {"rank": 4, "parameters": 0}, name),
        ("frames", {name: torch.zeros(5)}, {"rank": 4, "parameters": 0}, name),
        ("lora", {f"{name}.lora_A": torch.zeros(2, 3)}, {"rank": 2, "alpha": 1.0}, name),
        ("lora", {"lm_head.lora_A": torch.zeros(2, 3)}, {"rank": 2, "alpha": 1.0}, "lm_head"),
    ]
    for number, (kind, tensors, settings, named) in enumerate(strange):
        path = tmp_path / f"{number}"
        expert = ExpertFile(kind, tensors, settings)
        write_expert(path, expert, basis_fingerprint=adapted.basis.fingerprint, base_model="tiny")
        with pytest.raises(ArtifactError, match=named):
            read_change(path, sha256=sha256_file(path), adapted=adapted)
