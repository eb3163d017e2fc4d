"""What a training says of itself at its end: answers before and after, and what was forgotten."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_training import CONTAINS_E, PROMPTS, Events, Load, reinforcement, run, supervised, write_rows

from zhub.evaluation.forgetting import GENERAL, forgetting_of
from zhub.graders import NumericGrader
from zhub.recipes import DpoHyperparameters
from zhub_workers.evaluation import general_suite
from zhub_workers.evaluation.answer_pairs import MAX_CHARACTERS, AnswerPair, summary, write_pairs
from zhub_workers.evaluation.general_suite import Question
from zhub_workers.training import forgetting
from zhub_workers.training.forgetting import KeptAnswers

# Short enough for the tiny model's context, and easy: it answers with some letters, and the suite asks for one.
LETTERS = [Question("letters", f"say {letter}{letter}", letter, "words") for letter in "bcdfghjklmnpqrst"]
NUMBERS = [Question("numbers", f"say {number}", str(number), "number") for number in range(16)]


def typed(events: Events, kind: str) -> list[dict[str, Any]]:
    return [data for _, _, data in events if data is not None and data["type"] == kind]


def pair(line: int, before: float, after: float, **fields: Any) -> AnswerPair:
    texts = {"base_answer": f"before {line}", "expert_answer": f"after {line}", "expected": None}
    prompt = [{"role": "user", "content": f"row {line}"}]
    return AnswerPair("test", line, prompt, base_reward=before, expert_reward=after, **(texts | fields))


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Sequence[Question]:
    """A general suite that the tiny model can read, all of whose answers are right but one in ten."""
    questions = [*LETTERS, *NUMBERS]

    def graded(asked: Sequence[Question], answers: Sequence[str]) -> list[float]:
        return [float(sum(map(ord, answer)) % 10 != 0) for answer in answers]

    monkeypatch.setattr(forgetting, "choose_questions", lambda count: questions[:count])
    monkeypatch.setattr(forgetting, "grade_answers", graded)
    return questions


def test_the_test_rows_keep_both_answers_and_what_became_of_each(load_adapted: Load, tmp_path: Path) -> None:
    result, events = run(load_adapted("llama"), reinforcement(), write_rows(tmp_path / "t", PROMPTS))
    assert result.test is not None and len(result.answers) == result.test.base.n
    for answered in result.answers:
        assert answered.base_answer is not None and answered.expert_answer is not None
        assert answered.base_reward == float("e" in answered.base_answer)
        assert answered.expert_reward == float("e" in answered.expert_answer)
        assert answered.prompt[0]["content"] == PROMPTS[answered.line - 1]
        assert answered.expected == "e"
    (counts,) = typed(events, "answers")
    changes = [answered.change for answered in result.answers]
    assert [counts[change] for change in ("gained", "lost", "same")] == [
        changes.count(change) for change in ("gained", "lost", "same")
    ]


def test_pairs_of_likelihoods_have_answers_too(load_adapted: Load, tmp_path: Path) -> None:
    rows = [
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": prompt}]},
                "preferred_output": [{"role": "assistant", "content": "ee"}],
                "non_preferred_output": [{"role": "assistant", "content": "aa"}],
            }
        )
        for prompt in PROMPTS
    ]
    (tmp_path / "t").write_text("\n".join(rows))
    hyper = DpoHyperparameters(n_steps=4, batch_size=8, max_new_tokens=4, learning_rate=0.1)
    spec = supervised().model_copy(update={"recipe": "dpo", "hyperparameters": hyper})
    result, _ = run(load_adapted("llama"), spec, tmp_path / "t")
    assert result.answers and {answered.expected for answered in result.answers} == {"ee"}
    assert all(answered.base_answer is not None for answered in result.answers)


def test_the_file_has_what_was_lost_first_then_what_was_gained(tmp_path: Path) -> None:
    pairs = [pair(1, 0, 0), pair(2, 0, 1), pair(3, 1, 0.5), pair(4, 1, 0)]
    lines = [json.loads(line) for line in write_pairs(tmp_path, pairs).read_text().splitlines()]
    assert [(line["line"], line["change"]) for line in lines] == [(4, "lost"), (3, "lost"), (2, "gained"), (1, "same")]


def test_a_long_text_is_cut_in_the_file(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, [pair(1, 0, 0, base_answer="x" * 10 * MAX_CHARACTERS, expert_answer="\ud800")])
    (line,) = map(json.loads, path.read_text().splitlines())
    assert len(line["base_answer"]) == MAX_CHARACTERS and line["base_answer"].endswith("…")
    assert line["expert_answer"] == "\ud800"


def test_the_event_has_no_character_that_a_database_refuses() -> None:
    message, data = summary([pair(1, 0, 1, base_answer="a\0b", expert_answer="c\ud800d")])
    (example,) = data["examples"]["gained"]
    assert (example["base_answer"], example["expert_answer"]) == ("a\ufffdb", "c?d")
    assert "\0" not in message and message.isprintable()


def test_what_an_expert_has_forgotten_is_measured_by_category(
    load_adapted: Load, tmp_path: Path, suite: Sequence[Question]
) -> None:
    result, events = run(load_adapted("llama"), reinforcement(), write_rows(tmp_path / "t", PROMPTS))
    measured = forgetting_of(result.general)
    assert measured is not None
    assert [part.name for part in measured.categories] == ["letters", "numbers"]
    assert [evaluation.split for evaluation in result.general] == [GENERAL, "general/letters", "general/numbers"]
    assert measured.whole.evaluation.base.n == len(suite)
    kept = [answered for answered in result.answers if answered.suite == "general"]
    assert [answered.expected for answered in kept] == [question.answer for question in suite]
    (told,) = typed(events, "general")
    assert told["base"] == measured.whole.evaluation.base.mean


def test_a_job_that_wants_no_questions_is_asked_none(
    load_adapted: Load, tmp_path: Path, suite: Sequence[Question]
) -> None:
    rows = write_rows(tmp_path / "t", PROMPTS)
    result, events = run(load_adapted("llama"), reinforcement(general_questions=0), rows)
    assert result.general == () and not typed(events, "progress")


def test_a_base_that_knows_nothing_has_nothing_to_lose(
    load_adapted: Load, tmp_path: Path, suite: Sequence[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "grade_answers", lambda asked, _: [0.0] * len(asked))
    result, events = run(load_adapted("llama"), reinforcement(), write_rows(tmp_path / "t", PROMPTS))
    assert result.general == ()
    assert any("The base knows too little to lose anything: it has 0 of 32" in message for _, message, _ in events)


def test_questions_that_leave_no_room_for_an_answer_are_not_asked(load_adapted: Load, tmp_path: Path) -> None:
    result, events = run(load_adapted("llama"), reinforcement(), write_rows(tmp_path / "t", PROMPTS))
    assert result.general == ()
    assert any("general questions fit the base's context of 64 tokens" in message for _, message, _ in events)


def test_a_suite_that_cannot_be_answered_does_not_fail_the_training(
    load_adapted: Load, tmp_path: Path, suite: Sequence[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = NumericGrader(type="numeric", name="hopeless", reference="no number")
    check = general_suite.Check(hopeless, lambda text: text)
    monkeypatch.setattr(general_suite, "CHECKS", {"words": check, "number": check})
    monkeypatch.setattr(forgetting, "grade_answers", general_suite.grade_answers)
    result, events = run(load_adapted("llama"), reinforcement(), write_rows(tmp_path / "t", PROMPTS))
    assert result.test is not None and result.general == ()
    assert any(level == "warn" and "general suite could not be answered" in said for level, said, _ in events)


def test_a_base_answers_the_suite_once_on_a_node(load_adapted: Load, tmp_path: Path, suite: Sequence[Question]) -> None:
    adapted, rows, kept = load_adapted("llama"), write_rows(tmp_path / "t", PROMPTS), KeptAnswers(tmp_path / "general")
    first, again = (run(adapted, reinforcement(), rows, kept_answers=kept) for _ in range(2))
    total = len(suite)
    asked = [[said for _, said, data in events if data and data["type"] == "progress"] for _, events in (first, again)]
    by_expert = f"The expert has answered {total} of {total} general questions."
    assert asked == [[f"The base has answered {total} of {total} general questions.", by_expert], [by_expert]]
    assert first[0].general == again[0].general


def test_answers_are_kept_for_a_base_and_its_questions(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "general")
    assert kept.read("base", LETTERS) is None
    kept.write("base", LETTERS, [question.answer for question in LETTERS])
    assert kept.read("base", LETTERS) == [question.answer for question in LETTERS]
    assert kept.read("other", LETTERS) is None and kept.read("base", LETTERS[1:]) is None


def test_a_file_of_kept_answers_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path)
    kept.write("base", LETTERS, ["b"] * len(LETTERS))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert kept.read("base", LETTERS) is None


def test_an_expert_that_equals_its_base_has_forgotten_nothing(
    load_adapted: Load, tmp_path: Path, suite: Sequence[Question]
) -> None:
    impossible = CONTAINS_E.model_copy(update={"reference": "no such answer"})
    spec = reinforcement(impossible, n_steps=2, preflight_prompts=0)
    result, events = run(load_adapted("llama"), spec, write_rows(tmp_path / "t", PROMPTS))
    assert result.general == () and not typed(events, "progress")
    (counts,) = typed(events, "answers")
    assert (counts["gained"], counts["lost"]) == (0, 0)
