"""Training on a tiny random model, with a reward it can find."""

import copy
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from zhub.datasets.rows import prompt_position
from zhub.errors import (
    ArtifactError,
    ConstantRewardError,
    NonFiniteLossError,
    OutOfMemoryError,
    PromptTooLongError,
    RewardError,
    TrainingError,
)
from zhub.graders import StringCheckGrader
from zhub.specs import (
    BaseModelSource,
    BasisReference,
    DpoHyperparameters,
    ReinforcementHyperparameters,
    StoredFile,
    SupervisedHyperparameters,
    TrainSpec,
)
from zhub_workers.compute.group import LINGER_S, ComputeGroup, Stopped
from zhub_workers.compute.requests import Embed, Generate
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model import rollout
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import SvfAdapter, make_adapter
from zhub_workers.training.splits import split_dataset
from zhub_workers.training.state import TrainState, read_state, write_state
from zhub_workers.training.train import TrainResult, train

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
    *,
    group: ComputeGroup | None = None,
    resumed: TrainState | None = None,
    states: list[TrainState] | None = None,
) -> tuple[TrainResult, Events]:
    events: Events = []
    adapter = make_adapter(adapted, spec.hyperparameters)
    limit = spec.hyperparameters.micro_batch_tokens
    with (group or ComputeGroup()).join(adapter, should_stop, token_limit=limit) as member:
        result = train(
            spec,
            member=member,
            grading=Grading(spec.grader),
            training_path=training,
            validation_path=validation,
            on_event=lambda level, message, data: events.append((level, message, data)),
            on_checkpoint=lambda state, _: states.append(copy.deepcopy(state)) if states is not None else None,
            resumed=resumed,
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
    rows = write_rows(tmp_path / "t", PROMPTS, answer="ok")
    states: list[TrainState] = []
    with ComputeGroup().join(
        make_adapter(load_adapted("llama"), spec.hyperparameters),
        lambda: any(data is not None and data.get("step") == 3 for _, _, data in events),
    ) as member:
        result = train(
            spec,
            member=member,
            grading=Grading(spec.grader),
            training_path=rows,
            validation_path=None,
            on_event=lambda level, message, data: events.append((level, message, data)),
            on_checkpoint=lambda state, _: states.append(state),
        )
    assert result.stopped and result.steps == 3
    assert result.test is None and result.centroid is None
    assert states[-1].step == 3


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


def test_small_micro_batches_give_the_same_expert(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    adapted = load_adapted("llama")
    whole, _ = run(adapted, reinforcement(n_steps=2, eval_interval=2), rows)
    parts, _ = run(adapted, reinforcement(n_steps=2, eval_interval=2, micro_batch_tokens=64), rows)
    assert whole.best_step == parts.best_step
    assert all(torch.allclose(whole.artifact[name], parts.artifact[name], atol=5e-3) for name in whole.artifact)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"updates_per_rollout": 2, "kl_coef": 0.05},
        {"adapter": "lora", "lora_rank": 2, "learning_rate": 0.01},
        {"sparsity": 0.5},
        {"parameterisation": "sigmoid"},
    ],
)
def test_a_resumed_job_walks_the_trajectory_of_one_that_never_stopped(
    load_adapted: Load, tmp_path: Path, asked: dict[str, Any]
) -> None:
    rows, adapted = write_rows(tmp_path / "t", PROMPTS), load_adapted("llama")
    spec = reinforcement(n_steps=9, checkpoint_interval=1, eval_interval=3, **asked)
    states: list[TrainState] = []
    whole, _ = run(adapted, spec, rows, states=states)
    for step in (2, 5):
        write_state(tmp_path / "state", states[step - 1], spec_digest="d")
        again: list[TrainState] = []
        resumed, _ = run(adapted, spec, rows, resumed=read_state(tmp_path / "state", spec_digest="d"), states=again)
        assert [state.step for state in again] == list(range(step + 1, 10))
        for name, value in states[-1].parameters.items():
            assert torch.equal(value, again[-1].parameters[name])
        assert all(torch.equal(whole.artifact[name], resumed.artifact[name]) for name in whole.artifact)
        assert whole.test == resumed.test and whole.trained_tokens == resumed.trained_tokens


def test_a_state_of_another_job_is_refused_and_nothing_in_it_is_unpickled(load_adapted: Load, tmp_path: Path) -> None:
    states: list[TrainState] = []
    run(load_adapted("llama"), reinforcement(n_steps=1), write_rows(tmp_path / "t", PROMPTS), states=states)
    write_state(tmp_path / "state", states[0], spec_digest="one")
    with pytest.raises(ArtifactError, match="not a checkpoint of this job"):
        read_state(tmp_path / "state", spec_digest="another")
    ran = tmp_path / "ran"
    torch.save({"x": Planted(str(ran))}, tmp_path / "pickle")
    with pytest.raises(ArtifactError, match="not a training state"):
        read_state(tmp_path / "pickle", spec_digest="one")
    assert not ran.exists()


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce"])
def test_the_other_algorithms_find_the_reward_too(load_adapted: Load, tmp_path: Path, algorithm: str) -> None:
    spec = reinforcement(n_steps=24, algorithm=algorithm)
    result, _ = run(load_adapted("llama"), spec, write_rows(tmp_path / "t", PROMPTS))
    assert result.validation is not None
    assert result.validation.expert.mean > result.validation.base.mean


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


def together(jobs: list[Callable[[ComputeGroup], TrainResult]]) -> list[TrainResult | BaseException]:
    """Run jobs in threads of one group and wait for all of them."""
    group = ComputeGroup()

    def one(job: Callable[[ComputeGroup], TrainResult]) -> TrainResult | BaseException:
        try:
            return job(group)
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(one, jobs))


def test_jobs_that_train_together_become_what_each_becomes_alone(load_adapted: Load, tmp_path: Path) -> None:
    rows, adapted = write_rows(tmp_path / "t", PROMPTS), load_adapted("llama")
    contains_a = CONTAINS_E.model_copy(update={"reference": "a"})
    specs = [
        reinforcement(n_steps=6),
        reinforcement(contains_a, seed=3, n_steps=4),
        reinforcement(seed=9, n_steps=6, targets="mlp"),
    ]
    alone = [run(adapted, spec, rows)[0] for spec in specs]
    found = together([partial(lambda spec, group: run(adapted, spec, rows, group=group)[0], spec) for spec in specs])
    for one, other in zip(alone, found, strict=True):
        assert isinstance(other, TrainResult)
        assert one.artifact.keys() == other.artifact.keys()
        # Rounding of another grouping of the same products, grown by Adam's first steps.
        assert all(torch.allclose(one.artifact[name], other.artifact[name], atol=5e-3) for name in one.artifact)


def test_a_job_that_fails_or_stops_leaves_the_others_as_they_would_be(load_adapted: Load, tmp_path: Path) -> None:
    rows, adapted = write_rows(tmp_path / "t", PROMPTS), load_adapted("llama")
    alone, _ = run(adapted, reinforcement(n_steps=6), rows)
    lacking = CONTAINS_E.model_copy(update={"reference": "{{item.answer}}"})
    turns = iter(range(10**9))

    def diverging(group: ComputeGroup) -> TrainResult:
        spec = reinforcement(seed=1, n_steps=6, learning_rate=1.0, max_grad_norm=1e6, kl_coef=10.0)
        return run(adapted, spec, rows, group=group)[0]

    healthy, failed, stopped, _ = together(
        [
            lambda group: run(adapted, reinforcement(n_steps=6), rows, group=group)[0],
            lambda group: run(adapted, reinforcement(lacking), rows, group=group)[0],
            lambda group: run(adapted, reinforcement(seed=2), rows, should_stop=lambda: next(turns) > 40, group=group)[
                0
            ],
            diverging,
        ]
    )
    assert isinstance(failed, RewardError)
    assert isinstance(stopped, TrainResult) and stopped.stopped
    assert isinstance(healthy, TrainResult)
    assert all(torch.allclose(alone.artifact[name], healthy.artifact[name], atol=5e-3) for name in alone.artifact)


def test_a_job_that_should_stop_leaves_in_the_middle_of_what_its_neighbours_compute(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    group, both, stopping, left = ComputeGroup(), threading.Barrier(2), threading.Event(), threading.Event()
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)

    def neighbour() -> bool:
        def ask() -> bool:
            """Asked in the middle of the computation, which goes on only once the other has left."""
            if threading.current_thread().name.startswith("compute"):
                stopping.set()
                for _ in range(3000):
                    if left.wait(0.01):
                        break
                    group.pulse()
            return False

        with group.join(adapter, ask) as member:
            both.wait(30)
            member.run(Generate(None, [[1, 2]], max_new_tokens=2))
            return left.is_set()

    def stopped() -> None:
        with pytest.raises(Stopped), group.join(adapter, stopping.is_set) as member:
            both.wait(30)
            member.run(Generate(None, [[1, 2]], max_new_tokens=2))
        left.set()

    with ThreadPoolExecutor(2) as threads:
        answered, gone = threads.submit(neighbour), threads.submit(stopped)
        gone.result(60)
        assert answered.result(60)


def test_a_job_that_waits_shows_no_progress_while_the_computation_hangs(load_adapted: Load) -> None:
    adapted = load_adapted("llama")
    group, hanging, asked = ComputeGroup(), threading.Event(), threading.Event()
    adapter = SvfAdapter(adapted, list(adapted.layers), sigmoid=False)
    progress: list[bool] = []

    def count() -> bool:
        progress.append(True)
        return False

    def hang() -> bool:
        asked.set()
        hanging.wait(30)
        return False

    def hung() -> None:
        with group.join(adapter, hang) as member:
            member.run(Generate(None, [[1, 2]], max_new_tokens=2))

    def waiting() -> None:
        with group.join(adapter, count) as member:
            member.run(Embed(None, [[1, 2]]))

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(hung)
        assert asked.wait(30)
        second = threads.submit(waiting)
        wait([second], timeout=4 * LINGER_S)
        shown = len(progress)
        hanging.set()
        first.result(60)
        second.result(60)
    assert (shown, len(progress) > 0) == (0, True)


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
