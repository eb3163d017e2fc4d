"""Every kind of adapter is trained by every recipe with one word of the job changed, and makes an expert."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import PROMPTS, Load, reinforcement, run, supervised, write_rows

import zhub_workers
from zhub.demo.task_families import sample_rows
from zhub.recipes import DpoHyperparameters
from zhub.training.hyperparameters import resolve_hyperparameters
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import make_adapter
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.training.state import TrainState

TIED: dict[str, Any] = {"adapter": "core", "core_parameters": 16, "core_shared": True, "subspace_rank": 4}
KINDS: list[dict[str, Any]] = [
    {"adapter": "frames"},
    {"adapter": "core"},
    TIED,
    {"adapter": "lora", "lora_rank": 1},
    {"adapter": "dora", "lora_rank": 4},
]
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=["frames", "core", "tied core", "lora", "dora"])


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> AdaptedModel:
    base = load_base_model(Path(zhub_workers.__file__).parent / "shipped_base")
    directory = tmp_path_factory.mktemp("basis")
    return AdaptedModel(base, load_basis(directory, decompose_base(base, directory)))


@EACH_KIND
def test_a_job_with_the_defaults_improves_the_shipped_base(
    shipped: AdaptedModel, tmp_path: Path, kind: dict[str, Any]
) -> None:
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for row in sample_rows("sorting", 150, seed=1):
            answer = {"role": "assistant", "content": row["answer"]}
            file.write(json.dumps({"messages": [*row["messages"], answer]}) + "\n")
    asked = {"n_steps": 12, "eval_interval": 4, "max_new_tokens": 12, **kind}
    hyper = resolve_hyperparameters("supervised", asked, train_rows=120)
    result, _ = run(shipped, supervised().model_copy(update={"hyperparameters": hyper}), rows)
    assert result.validation is not None
    assert result.validation.expert.mean > result.validation.base.mean


@EACH_KIND
def test_reinforcement_finds_a_reward_by_every_kind(load_adapted: Load, tmp_path: Path, kind: dict[str, Any]) -> None:
    rate = {"frames": 0.05, "core": 0.2 if kind is TIED else 0.05}.get(kind["adapter"], 0.02)
    rows = write_rows(tmp_path / "t", PROMPTS)
    result, _ = run(load_adapted("llama"), reinforcement(n_steps=24, learning_rate=rate, **kind), rows)
    assert result.validation is not None
    assert result.validation.expert.mean > result.validation.base.mean


@EACH_KIND
def test_preferences_are_learnt_by_every_kind(load_adapted: Load, tmp_path: Path, kind: dict[str, Any]) -> None:
    rows = tmp_path / "t"
    with rows.open("w") as file:
        for prompt in PROMPTS:
            sides = {
                name: [{"role": "assistant", "content": content}]
                for name, content in (("preferred_output", "zq"), ("non_preferred_output", "ok"))
            }
            file.write(json.dumps({"input": {"messages": [{"role": "user", "content": prompt}]}, **sides}) + "\n")
    hyper = DpoHyperparameters(n_steps=12, batch_size=16, learning_rate=0.05, beta=0.5, **kind)
    spec = reinforcement().model_copy(update={"recipe": "dpo", "hyperparameters": hyper, "grader": None})
    _, events = run(load_adapted("llama"), spec, rows)
    losses = [data["train_loss"] for _, _, data in events if data and "train_loss" in data]
    assert losses[-1] < 0.9 * losses[0]


@EACH_KIND
def test_an_exported_expert_imports_as_the_values_that_were_trained(
    load_adapted: Load, tmp_path: Path, kind: dict[str, Any]
) -> None:
    adapted, spec = load_adapted("llama"), reinforcement(n_steps=1, checkpoint_interval=1, **kind)
    states: list[TrainState] = []
    run(adapted, spec, write_rows(tmp_path / "t", PROMPTS), states=states)
    adapter = make_adapter(adapted, spec.hyperparameters)
    values = adapter.values(states[-1].parameters)
    imported = adapter.imported(states[-1].current)
    assert imported.keys() == values.keys()
    assert all(torch.equal(imported[name], values[name]) for name in values)
    assert any(value.any() for value in values.values())


def test_tied_cores_have_as_many_parameters_as_are_asked_for(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    adapter = make_adapter(adapted, reinforcement(**TIED).hyperparameters)
    parameters = adapter.initial(0)
    assert sum(value.numel() for value in parameters.values()) == 16
    assert adapter.values(parameters).keys() == adapted.layers.keys()
