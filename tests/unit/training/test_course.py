"""Collapse: what is one, what is only chance, and what training does about it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import CONTAINS_E, PROMPTS, Load, reinforcement, run, write_rows

from zhub.demo.task_families import sample_rows
from zhub.manifest import canonical_json
from zhub.specs import TrainSpec
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import load_base_model
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.training import trainer
from zhub_workers.training.course import MAX_EXPLORATION, Course, Verdict
from zhub_workers.training.state import TrainState, read_state, write_state

SHIPPED = Path(trainer.__file__).parents[1] / "shipped_base"
GOOD = [[1.0, 0.0]] * 6 + [[1.0, 1.0]] * 2  # mean 0.625
NONE = [[0.0, 0.0]] * 8
Groups = list[list[float]]


def course_after(*steps: Groups, unread: float = 0.0, entropy: float = 1.0) -> Course:
    course = Course()
    for groups in steps:
        course.note_answers(groups, unread)
        course.note_entropy(entropy)
    return course


def test_two_steps_without_the_rewards_of_before_are_a_collapse() -> None:
    course = course_after(GOOD, GOOD)
    assert course.note_answers(NONE, 0.0) == Verdict()
    collapse = course.note_answers(NONE, 0.0).collapse
    assert collapse == "the mean reward fell from 0.625 to 0.000"


def test_one_bad_step_between_good_ones_is_none() -> None:
    course = course_after(GOOD)
    for groups in (NONE, GOOD, NONE, GOOD):
        assert course.note_answers(groups, 0.0).collapse is None


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.6, 0.95])
def test_chance_is_none(share: float) -> None:
    rng = random.Random(0)
    course = Course()
    for _ in range(500):
        of_prompts = [min(1.0, max(0.0, rng.gauss(share, 0.2))) for _ in range(8)]
        groups = [[float(rng.random() < of_prompt) for _ in range(8)] for of_prompt in of_prompts]
        assert course.note_answers(groups, unread=rng.uniform(0, 0.4)).collapse is None
        course.note_entropy(rng.uniform(0.3, 1.2))


def test_answers_that_cannot_be_read_any_more_are_a_collapse() -> None:
    course = course_after(NONE, unread=0.3)
    course.note_answers(NONE, 0.9)
    assert course.note_answers(NONE, 0.95).collapse == "95% of the answers cannot be read, 30% at first"


def test_one_answer_to_everything_is_a_collapse_and_a_hard_task_is_none() -> None:
    same = [[1.0, 1.0]] * 3 + [[0.0, 0.0]] * 5
    for entropy, expected in ((0.05, "all answers to a prompt are alike"), (0.9, None)):
        course = course_after(same)
        course.note_entropy(entropy)
        course.note_answers(same, 0.0)
        collapse = course.note_answers(same, 0.0).collapse
        assert collapse is None if expected is None else expected in (collapse or "")


def test_only_right_answers_are_none() -> None:
    course = course_after(GOOD, GOOD)
    for _ in range(5):
        course.note_entropy(0.001)
        assert course.note_answers([[1.0, 1.0]] * 8, 0.0).collapse is None


def test_ever_more_random_answers_are_a_collapse() -> None:
    course = course_after(GOOD, entropy=1.0)
    course.note_entropy(5.0)
    weak = [[1.0, 0.0]] * 6 + [[0.0, 0.0]] * 2
    course.note_answers(weak, 0.0)
    assert "ever more random: entropy 5.00 nats, 1.00 at first" in (course.note_answers(weak, 0.0).collapse or "")


def test_exploration_is_rewarded_while_entropy_is_below_its_floor() -> None:
    course = course_after(GOOD, entropy=1.0)
    assert course.exploration == 0
    for _ in range(100):
        course.note_entropy(0.1)
    assert course.exploration == MAX_EXPLORATION
    for _ in range(100):
        course.note_entropy(0.5)
    assert course.exploration == 0


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> AdaptedModel:
    base, directory = load_base_model(SHIPPED), tmp_path_factory.mktemp("basis")
    return AdaptedModel(base, load_basis(directory, decompose_base(base, directory)))


def destructive(tmp_path: Path, **asked: Any) -> tuple[TrainSpec, Path]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(canonical_json(row) for row in sample_rows("sorting", 400, seed=1)))
    grader = CONTAINS_E.model_copy(update={"reference": "{{item.answer}}", "operation": "eq"})
    asked |= {"learning_rate": 1.0, "step_kl": 0.0, "batch_size": 16, "max_new_tokens": 10, "eval_interval": 100}
    return reinforcement(grader, preflight_prompts=0, **asked), path


def test_a_policy_that_its_rate_destroys_is_brought_back_to_its_best_within_two_steps(
    shipped: AdaptedModel, tmp_path: Path
) -> None:
    spec, rows = destructive(tmp_path, n_steps=10, checkpoint_interval=1)
    states: list[TrainState] = []
    _, events = run(shipped, spec, rows, states=states)
    (first, *_) = [message for _, message, data in events if (data or {}).get("type") == "rolled_back"]
    assert "Training goes on from the best parameters so far" in first
    back = next(state for state in states if state.course.rollbacks)
    assert back.step <= 3, "destroyed by the first step, noticed in the second and third"
    assert not any(value.any() for value in back.parameters.values()), "the base, whose answers were the best"
    assert not any(moment.any() for moment in back.first_moments.values())
    assert states[-1].course.rate < 0.5


def test_a_policy_that_collapses_again_and_again_ends_training(
    shipped: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MAX_ROLLBACKS", 1)
    spec, rows = destructive(tmp_path, n_steps=40)
    result, events = run(shipped, spec, rows)
    assert any("collapsed 2 times: training ends early" in message for _, message, _ in events)
    assert result.steps < 10


def test_the_divergence_pulls_back_also_where_all_answers_are_rewarded_alike(
    load_adapted: Load, tmp_path: Path
) -> None:
    never = CONTAINS_E.model_copy(update={"reference": "no such answer"})
    spec = reinforcement(never, n_steps=8, checkpoint_interval=1, preflight_prompts=0, kl_coef=1.0)
    rows = write_rows(tmp_path / "t", PROMPTS)
    states: list[TrainState] = []
    run(load_adapted("llama"), spec, rows, states=states)
    assert all(not value.any() for value in states[0].parameters.values()), "it is the base: nothing to pull back to"
    far = states[0]
    generator = torch.Generator().manual_seed(1)
    for name, value in far.parameters.items():
        far.parameters[name] = 0.3 * torch.randn(value.shape, generator=generator)
    _, events = run(load_adapted("llama"), spec, rows, resumed=far)
    kl = [data["kl"] for _, _, data in events if data and "kl" in data]
    assert kl[-1] < 0.7 * kl[0]


def test_the_course_survives_a_checkpoint_bit_for_bit(load_adapted: Load, tmp_path: Path) -> None:
    states: list[TrainState] = []
    spec = reinforcement(n_steps=2, checkpoint_interval=1)
    run(load_adapted("llama"), spec, write_rows(tmp_path / "t", PROMPTS), states=states)
    write_state(tmp_path / "state", states[0], spec_digest="d")
    read = read_state(tmp_path / "state", spec_digest="d")
    assert repr(read.course) == repr(states[0].course)
    assert all(torch.equal(read.anchor[name], value) for name, value in states[0].anchor.items())


def after(looks: int) -> Callable[[], bool]:
    left = iter(range(looks))
    return lambda: next(left, None) is None


def test_a_step_that_is_interrupted_is_no_part_of_the_course(load_adapted: Load, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    whole: list[TrainState] = []
    run(load_adapted("llama"), reinforcement(n_steps=3, checkpoint_interval=1), rows, states=whole)
    spec = reinforcement(n_steps=3, checkpoint_interval=3)  # before its end it is written only when it is stopped
    interrupted_steps = 0
    for looks in range(20, 400, 6):  # the stop comes in every part of a step
        states: list[TrainState] = []
        result, _ = run(load_adapted("llama"), spec, rows, should_stop=after(looks), states=states)
        if not result.stopped:
            break
        interrupted_steps += bool(states)
        for state in states:
            assert repr(state.course) == repr(whole[state.step - 1].course)
    assert interrupted_steps > 3
