"""Training on a tiny random model, with a reward it can find."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import CONTAINS_E, PROMPTS, Load, reinforcement, run, supervised, write_rows

from zhub.datasets.rows import Row
from zhub.errors import (
    ConstantRewardError,
    NonFiniteLogitsError,
    NonFiniteLossError,
    OutOfMemoryError,
    PromptTooLongError,
    RewardError,
    TrainingError,
)
from zhub_workers.evaluation.grading import EncodedRow, cut
from zhub_workers.model import rollout


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
        run(adapted, reinforcement(seed=seed, n_steps=8, kl_coef=kl_coef), rows)[0].artifact for seed in (7, 7, 8)
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
        load_adapted("llama"),
        reinforcement(impossible, n_steps=2, preflight_prompts=0),
        write_rows(tmp_path / "t", PROMPTS),
    )
    assert result.best_step == 0
    assert all(torch.equal(values, torch.ones_like(values)) for values in result.artifact.values())
    assert [message for level, message, _ in events if level == "warn"] == [
        "No step beat the base model on validation rows, so the new expert equals it."
    ]
    assert result.test is not None and result.test.p_value == 1.0 and result.test.base == result.test.expert


def test_too_few_distinct_prompts_are_refused_with_the_number_needed(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", [f"say {n}" for n in range(9)])
    with pytest.raises(TrainingError, match="9 distinct prompts. At least 10"):
        run(load_adapted("llama"), reinforcement(), rows)


def test_a_prompt_that_fills_the_context_is_named_by_its_line(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", [*PROMPTS, "x" * 80])
    with pytest.raises(PromptTooLongError) as caught:
        run(load_adapted("llama"), reinforcement(), rows)
    assert (caught.value.line, caught.value.limit) == (81, 64)


LONG = ["x" * 80, "y" * 90, "z" * 100]


def test_all_rows_that_are_too_long_are_named_at_once(load_adapted: Load, tmp_path: Path) -> None:
    training, validation = write_rows(tmp_path / "t", [LONG[0], *PROMPTS, LONG[1]]), tmp_path / "v"
    write_rows(validation, [*(f"new {n}" for n in range(20)), LONG[2]])
    with pytest.raises(PromptTooLongError) as caught:
        run(load_adapted("llama"), reinforcement(), training, validation)
    assert [(row.line, row.in_validation_file) for row in caught.value.rows] == [(1, False), (82, False), (21, True)]
    assert all(f"line {line} (" in str(caught.value) for line in (1, 82, 21))


def test_rows_that_are_too_long_are_left_out_or_cut_on_request(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", [*PROMPTS, *LONG], answer="ok")
    for how, done in (("skip", "left out"), ("cut", "cut")):
        _, events = run(load_adapted("llama"), supervised(n_steps=1, long_rows=how), rows)
        (warning,) = [message for level, message, data in events if (data or {}).get("type") == "long_rows"]
        assert f"3 rows with more than 64 tokens are {done}, the first: line 81" in warning


def test_a_row_is_cut_at_the_end_of_its_answers_and_then_at_the_beginning_of_its_prompt() -> None:
    row = EncodedRow(Row(1, [], {}), prompt=[1, 2, 3, 4], target=[5, 6, 7], rejected=[8])
    parts = {limit: cut(row, limit) for limit in (7, 6, 5, 3)}
    assert {limit: (part.prompt, part.target, part.rejected) for limit, part in parts.items()} == {
        7: ([1, 2, 3, 4], [5, 6, 7], [8]),
        6: ([1, 2, 3, 4], [5, 6], [8]),
        5: ([1, 2, 3, 4], [5], [8]),
        3: ([3, 4], [5], [8]),
    }
    assert all(part.tokens <= limit for limit, part in parts.items())


def test_a_grader_that_needs_a_column_the_row_lacks_fails_the_job(load_adapted: Load, tmp_path: Path) -> None:
    grader = CONTAINS_E.model_copy(update={"reference": "{{item.answer}}"})
    with pytest.raises(RewardError, match=r"item\.answer"):
        run(load_adapted("llama"), reinforcement(grader), write_rows(tmp_path / "t", PROMPTS))


def test_a_loss_that_is_not_finite_names_its_step(
    load_adapted: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = supervised(learning_rate=1.0, n_steps=50, eval_interval=50)
    adapted = load_adapted("llama")
    score = rollout.token_logprobs

    def overflow(base: Any, prompts: Any, answers: Any, **rest: Any) -> Any:
        logprobs, mask = score(base, prompts, answers, **rest)
        return logprobs * float("inf"), mask

    monkeypatch.setattr("zhub_workers.compute.batches.token_logprobs", overflow)
    with pytest.raises(NonFiniteLossError) as caught:
        run(adapted, spec, write_rows(tmp_path / "t", PROMPTS, answer="ok"))
    assert caught.value.step == 1


def test_a_base_whose_scores_are_not_finite_fails_before_the_first_step(load_adapted: Load, tmp_path: Path) -> None:
    adapted = load_adapted("llama")
    with torch.no_grad():
        adapted.base.model.get_output_embeddings().weight.mul_(float("inf"))
    with pytest.raises(NonFiniteLogitsError):
        run(adapted, supervised(n_steps=1, eval_interval=1), write_rows(tmp_path / "t", PROMPTS, answer="ok"))


def test_small_micro_batches_give_the_same_expert(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    adapted = load_adapted("llama")
    whole, _ = run(adapted, reinforcement(n_steps=2, eval_interval=2), rows)
    parts, _ = run(adapted, reinforcement(n_steps=2, eval_interval=2, micro_batch_tokens=16), rows)
    assert whole.best_step == parts.best_step
    assert all(torch.allclose(whole.artifact[name], parts.artifact[name], atol=5e-3) for name in whole.artifact)


def test_a_reward_that_never_varies_is_found_before_the_first_step(load_adapted: Load, tmp_path: Path) -> None:
    impossible = CONTAINS_E.model_copy(update={"reference": "no such answer"})
    with pytest.raises(ConstantRewardError, match="got the reward 0"):
        run(load_adapted("llama"), reinforcement(impossible), write_rows(tmp_path / "t", PROMPTS))


def test_training_ends_early_when_validation_no_longer_improves(load_adapted: Load, tmp_path: Path) -> None:
    spec = reinforcement(n_steps=200, eval_interval=1, patience=2, learning_rate=1e-6)
    result, events = run(load_adapted("llama"), spec, write_rows(tmp_path / "t", PROMPTS))
    assert result.steps < 200
    assert any("training ends early" in message for _, message, _ in events)


def test_micro_batches_halve_when_memory_runs_out_and_the_job_says_so(
    load_adapted: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, adapted, spec = write_rows(tmp_path / "t", PROMPTS), load_adapted("llama"), reinforcement(n_steps=2)
    whole, _ = run(adapted, spec, rows)
    score = rollout.token_logprobs

    def small_device(base: Any, prompts: Any, answers: Any, **rest: Any) -> Any:
        if len(prompts) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(base, prompts, answers, **rest)

    monkeypatch.setattr("zhub_workers.compute.batches.token_logprobs", small_device)
    halved, events = run(adapted, spec, rows)
    assert any(level == "warn" and "micro-batches hold at most" in message for level, message, _ in events)
    assert all(torch.allclose(whole.artifact[name], halved.artifact[name], atol=5e-3) for name in whole.artifact)


def test_a_single_row_that_does_not_fit_is_a_named_error(
    load_adapted: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("zhub_workers.compute.batches.generate", no_memory)
    with pytest.raises(OutOfMemoryError, match="too little free memory for a single row"):
        run(load_adapted("llama"), reinforcement(), write_rows(tmp_path / "t", PROMPTS))
