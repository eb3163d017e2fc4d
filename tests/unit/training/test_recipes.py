"""What the recipes and their settings make of an expert."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_training import PROMPTS, Load, reinforcement, run, supervised, write_rows

from zhub.errors import (
    TrainingError,
)
from zhub.recipes import DpoHyperparameters
from zhub_workers.training.state import TrainState


def test_reinforcement_finds_a_reward_that_can_be_found(load_adapted: Load, tmp_path: Path) -> None:
    result, events = run(load_adapted("llama"), reinforcement(n_steps=24), write_rows(tmp_path / "t", PROMPTS))
    assert result.validation is not None and result.test is not None
    assert result.best_step > 0 and result.steps == 24 and not result.stopped
    assert result.validation.expert.mean > result.validation.base.mean
    curve = [data["train_reward_mean"] for _, _, data in events if data and "train_reward_mean" in data]
    assert len(curve) == 24
    assert sum(curve[-6:]) > sum(curve[:6]) + 0.6
    assert result.test.split == "test" and result.test.expert.n == result.test.base.n


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce"])
def test_the_other_algorithms_find_the_reward_too(load_adapted: Load, tmp_path: Path, algorithm: str) -> None:
    spec = reinforcement(n_steps=24, algorithm=algorithm)
    result, _ = run(load_adapted("llama"), spec, write_rows(tmp_path / "t", PROMPTS))
    assert result.validation is not None
    assert result.validation.expert.mean > result.validation.base.mean


def test_supervised_training_learns_the_targets_and_their_end(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS, answer="ok")
    result, events = run(load_adapted("llama"), supervised(), rows)
    losses = [data["train_loss"] for _, _, data in events if data and "train_loss" in data]
    assert losses[-1] < 0.7 * losses[0]
    assert result.validation is not None and result.validation.expert.mean >= result.validation.base.mean


def test_preferences_are_learnt_from_pairs(load_adapted: Load, tmp_path: Path) -> None:
    rows = tmp_path / "t"
    rows.write_text("".join(json.dumps(pair(prompt)) + "\n" for prompt in PROMPTS))
    hyper = DpoHyperparameters(n_steps=30, batch_size=16, learning_rate=0.1, beta=0.5)
    spec = reinforcement().model_copy(update={"recipe": "dpo", "hyperparameters": hyper, "grader": None})
    result, events = run(load_adapted("llama"), spec, rows)
    losses = [data["train_loss"] for _, _, data in events if data and "train_loss" in data]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)  # before the first step both log-ratios are zero
    assert losses[-1] < 0.8 * losses[0]
    assert result.validation is not None and result.validation.expert.mean >= result.validation.base.mean


def pair(prompt: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": prompt}]},
        "preferred_output": [{"role": "assistant", "content": "zq"}],
        "non_preferred_output": [{"role": "assistant", "content": "ok"}],
    }


def test_a_lora_is_trained_by_the_same_spec_with_one_word_changed(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("llama")
    spec = reinforcement(n_steps=24, adapter="lora", lora_rank=4, learning_rate=0.02)
    result, _ = run(adapted, spec, write_rows(tmp_path / "t", PROMPTS))
    assert {name.rpartition(".")[2] for name in result.artifact} == {"lora_A", "lora_B"}
    assert result.validation is not None
    assert result.validation.expert.mean > result.validation.base.mean


def test_only_the_targets_and_layers_asked_for_are_in_the_artifact(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    result, _ = run(load_adapted("llama"), reinforcement(n_steps=1, targets="mlp", layers=[0, 0]), rows)
    assert result.artifact and all(".layers.0." in name and "mlp" in name for name in result.artifact)
    with pytest.raises(TrainingError, match="no matrix for targets 'mlp' in blocks 70 to 71"):
        run(load_adapted("llama"), reinforcement(targets="mlp", layers=[70, 71]), rows)


def test_a_sparse_expert_leaves_its_share_of_multipliers_at_one(load_adapted: Load, tmp_path: Path) -> None:
    spec = reinforcement(n_steps=24, sparsity=0.75)
    result, _ = run(load_adapted("llama"), spec, write_rows(tmp_path / "t", PROMPTS))
    assert result.best_step > 8  # the dense steps are not candidates
    for z in result.artifact.values():
        assert int((z != 1).sum()) <= math.ceil(0.25 * len(z))


def test_the_sigmoid_parameterisation_keeps_every_nuclear_norm(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("llama")
    spec = reinforcement(n_steps=12, parameterisation="sigmoid", learning_rate=0.2)
    states: list[TrainState] = []
    run(adapted, spec, write_rows(tmp_path / "t", PROMPTS), states=states)
    moved = states[-1].current
    assert any((z - 1).abs().max() > 0.01 for z in moved.values())
    for name, z in moved.items():
        s = adapted.singular_values(name)
        assert float((s * z).sum()) == pytest.approx(float(s.sum()), rel=1e-4)
