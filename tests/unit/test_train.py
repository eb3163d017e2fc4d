"""Training on a tiny random model, with a reward it can find."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zhub.errors import NonFiniteLossError, PromptTooLongError, RewardError, TrainingError
from zhub.graders import StringCheckGrader
from zhub.rows import prompt_position
from zhub.specs import (
    BaseModelSource,
    BasisReference,
    ReinforcementHyperparameters,
    StoredFile,
    SupervisedHyperparameters,
    TrainSpec,
)
from zhub_workers import train as train_module
from zhub_workers.adapted import AdaptedModel
from zhub_workers.train import TrainResult, split_dataset, train

Load = Callable[[str], AdaptedModel]
Events = list[tuple[str, str, dict[str, Any] | None]]
FILE = StoredFile(name="rows.jsonl", key="k", sha256="0" * 64, size_bytes=1)
CONTAINS_E = StringCheckGrader(
    type="string_check", name="has an e", input="{{sample.output_text}}", reference="e", operation="like"
)


def reinforcement(grader: StringCheckGrader = CONTAINS_E, seed: int = 7, **asked: Any) -> TrainSpec:
    settings = {"n_steps": 12, "batch_size": 8, "group_size": 8, "max_new_tokens": 4, "learning_rate": 0.05, **asked}
    hyper = ReinforcementHyperparameters(**{"eval_interval": 4, **settings})
    return TrainSpec(
        expert="e",
        base=BaseModelSource(name="tiny"),
        basis=BasisReference(weights_fingerprint="", basis_fingerprint="", key_prefix=""),
        training_file=FILE,
        validation_file=None,
        recipe="reinforcement",
        hyperparameters=hyper,
        grader=grader,
        seed=seed,
    )


def supervised(**asked: Any) -> TrainSpec:
    settings = {"n_steps": 30, "batch_size": 16, "max_new_tokens": 4, "learning_rate": 0.1, **asked}
    hyper = SupervisedHyperparameters(**settings)
    return reinforcement().model_copy(update={"recipe": "supervised", "hyperparameters": hyper, "grader": None})


def write_rows(path: Path, prompts: list[str], answer: str | None = None, **columns: Any) -> Path:
    rows = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        rows.append(json.dumps({"messages": messages, **columns}))
    path.write_text("\n".join(rows) + "\n")
    return path


PROMPTS = [f"say {letter}{number}" for letter in "abcdefgh" for number in range(10)]


def run(
    adapted: AdaptedModel,
    spec: TrainSpec,
    training: Path,
    validation: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainResult, Events]:
    events: Events = []
    result = train(
        spec,
        adapted=adapted,
        training_path=training,
        validation_path=validation,
        on_event=lambda level, message, data: events.append((level, message, data)),
        should_stop=should_stop,
    )
    return result, events


def test_reinforcement_finds_a_reward_that_can_be_found(load_adapted: Load, tmp_path: Path) -> None:
    result, events = run(load_adapted("llama"), reinforcement(n_steps=24), write_rows(tmp_path / "t", PROMPTS))
    assert result.validation is not None and result.test is not None
    assert result.best_step > 0 and result.steps == 24 and not result.stopped
    assert result.validation.expert.mean > result.validation.base.mean
    curve = [data["train_reward_mean"] for _, _, data in events if data and "train_reward_mean" in data]
    assert len(curve) == 24
    assert sum(curve[-6:]) > sum(curve[:6]) + 0.6
    assert result.test.split == "test" and result.test.expert.n == result.test.base.n


def test_the_kept_z_is_the_one_that_scored_best_on_validation(load_adapted: Load, tmp_path: Path) -> None:
    result, events = run(load_adapted("llama"), reinforcement(), write_rows(tmp_path / "t", PROMPTS))
    scores = {data["step"]: data["valid_reward_mean"] for _, _, data in events if data and "valid_reward_mean" in data}
    assert list(scores) == [0, 4, 8, 12]
    assert result.validation is not None
    best = max(scores.values())
    assert result.best_step == next(step for step, score in scores.items() if score == best)
    assert result.validation.expert.mean == pytest.approx(best)


@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_the_same_seed_gives_the_same_z_and_another_seed_another(
    load_adapted: Load, tmp_path: Path, kl_coef: float
) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    adapted = load_adapted("llama")
    first, again, other = (
        run(adapted, reinforcement(seed=seed, n_steps=8, kl_coef=kl_coef), rows)[0].z for seed in (7, 7, 8)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_model_is_the_base_again_after_training(load_adapted: Load, tmp_path: Path) -> None:
    adapted, ids = load_adapted("gpt2"), torch.tensor([[5, 6, 7]])
    before = adapted.base.model(ids).logits
    run(adapted, reinforcement(n_steps=2), write_rows(tmp_path / "t", PROMPTS))
    assert torch.equal(adapted.base.model(ids).logits, before)


def test_an_expert_that_never_beats_the_base_is_the_base_and_says_so(load_adapted: Load, tmp_path: Path) -> None:
    impossible = CONTAINS_E.model_copy(update={"reference": "no such answer"})
    result, events = run(
        load_adapted("llama"), reinforcement(impossible, n_steps=2), write_rows(tmp_path / "t", PROMPTS)
    )
    assert result.best_step == 0
    assert all(torch.equal(values, torch.ones_like(values)) for values in result.z.values())
    assert [message for level, message, _ in events if level == "warn"] == [
        "No step beat the base model on validation rows, so the expert equals the base."
    ]
    assert result.test is not None and result.test.p_value == 1.0 and result.test.base == result.test.expert


def test_supervised_training_learns_the_targets_and_their_end(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS, answer="ok")
    result, events = run(load_adapted("llama"), supervised(), rows)
    losses = [data["train_loss"] for _, _, data in events if data and "train_loss" in data]
    assert losses[-1] < 0.7 * losses[0]
    assert result.validation is not None and result.validation.expert.mean >= result.validation.base.mean


@pytest.mark.parametrize("spec", [reinforcement(n_steps=1000), supervised(n_steps=1000)])
def test_a_stop_ends_training_within_a_step_and_keeps_what_there_is(
    load_adapted: Load, tmp_path: Path, spec: TrainSpec
) -> None:
    events: Events = []
    result = train(
        spec,
        adapted=load_adapted("llama"),
        training_path=write_rows(tmp_path / "t", PROMPTS, answer="ok"),
        validation_path=None,
        on_event=lambda level, message, data: events.append((level, message, data)),
        should_stop=lambda: any(data is not None and data.get("step") == 3 for _, _, data in events),
    )
    assert result.stopped and result.steps == 3
    assert result.validation is not None and result.test is None and result.centroid is None


def test_a_stop_before_the_first_answer_is_obeyed_too(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    result, _ = run(load_adapted("llama"), reinforcement(), rows, should_stop=lambda: True)
    assert result.stopped and result.steps == 0 and result.validation is None


def test_too_few_distinct_prompts_are_refused_with_the_number_needed(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", [f"say {n}" for n in range(9)])
    with pytest.raises(TrainingError, match="9 distinct prompts. At least 10"):
        run(load_adapted("llama"), reinforcement(), rows)


def test_a_prompt_that_fills_the_context_is_named_by_its_line(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", [*PROMPTS, "x" * 80])
    with pytest.raises(PromptTooLongError) as caught:
        run(load_adapted("llama"), reinforcement(), rows)
    assert (caught.value.line, caught.value.limit) == (81, 64)


def test_a_grader_that_needs_a_column_the_row_lacks_fails_the_job(load_adapted: Load, tmp_path: Path) -> None:
    grader = CONTAINS_E.model_copy(update={"reference": "{{item.answer}}"})
    with pytest.raises(RewardError, match=r"item\.answer"):
        run(load_adapted("llama"), reinforcement(grader), write_rows(tmp_path / "t", PROMPTS))


def test_a_loss_that_is_not_finite_names_its_step(load_adapted: Load, tmp_path: Path) -> None:
    spec = supervised(learning_rate=1.0, n_steps=50, eval_interval=50)
    adapted = load_adapted("llama")
    with torch.no_grad():
        adapted.base.model.get_output_embeddings().weight.mul_(float("inf"))
    with pytest.raises(NonFiniteLossError) as caught:
        run(adapted, spec, write_rows(tmp_path / "t", PROMPTS, answer="ok"))
    assert caught.value.step == 1


def test_small_micro_batches_give_the_same_expert(
    load_adapted: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, spec = write_rows(tmp_path / "t", PROMPTS), reinforcement(n_steps=2, eval_interval=2)
    adapted = load_adapted("llama")
    whole, _ = run(adapted, spec, rows)
    monkeypatch.setattr(train_module, "ACTIVATION_BUDGET_BYTES", 1 << 20)
    parts, _ = run(adapted, spec, rows)
    assert whole.best_step == parts.best_step
    assert all(torch.allclose(whole.z[name], parts.z[name], atol=5e-3) for name in whole.z)


def test_a_validation_file_is_halved_and_its_prompts_are_never_trained_on(tmp_path: Path) -> None:
    training = write_rows(tmp_path / "t", PROMPTS)
    validation = write_rows(tmp_path / "v", [*PROMPTS[:20], *(f"new {n}" for n in range(20))])
    splits = split_dataset(training, validation)
    positions = {name: {prompt_position(row.prompt) for row in rows} for name, rows in splits.items()}
    assert len(positions["train"]) == 60
    assert not positions["train"] & (positions["validation"] | positions["test"])
    assert not positions["validation"] & positions["test"]
    assert len(positions["validation"]) + len(positions["test"]) == 40
    assert positions["validation"] and positions["test"]


def test_a_validation_file_that_leaves_nothing_to_train_on_or_to_test_on_is_refused(tmp_path: Path) -> None:
    training = write_rows(tmp_path / "t", PROMPTS[:12])
    with pytest.raises(TrainingError, match="none is left"):
        split_dataset(training, write_rows(tmp_path / "all", PROMPTS[:12]))
    with pytest.raises(TrainingError, match="At least 2"):
        split_dataset(training, write_rows(tmp_path / "one", ["only this"]))
