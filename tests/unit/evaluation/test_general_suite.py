"""The questions of the general suite: each has a right answer that its own check accepts, and a copy is none."""

import ast
import calendar
import json
import operator
import re
from collections import Counter
from collections.abc import Callable

import pytest

from zhub.recipes import SupervisedHyperparameters
from zhub_workers.evaluation.general_suite import (
    CHECKS,
    SUITE_FILE,
    Question,
    all_questions,
    choose_questions,
    grade_answers,
)

QUESTIONS = all_questions()
OPERATORS: dict[type[ast.operator], Callable[[int, int], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def worked_out(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](int(worked_out(node.left)), int(worked_out(node.right)))
    assert isinstance(node, ast.Constant) and isinstance(node.value, int)
    return node.value


def of_category(name: str) -> list[Question]:
    return [question for question in QUESTIONS if question.category == name]


def test_all_of_it_is_asked_unless_a_job_wants_less() -> None:
    assert SupervisedHyperparameters(n_steps=1).general_questions == len(QUESTIONS)


def test_a_question_is_there_once_and_has_a_check() -> None:
    assert len({question.question for question in QUESTIONS}) == len(QUESTIONS)
    assert {question.check for question in QUESTIONS} == set(CHECKS)


def test_no_category_is_too_small_to_show_a_loss() -> None:
    assert min(Counter(question.category for question in QUESTIONS).values()) >= 24


def test_the_right_answer_is_right_alone_and_in_a_sentence() -> None:
    alone = [question.answer for question in QUESTIONS]
    assert grade_answers(QUESTIONS, alone) == [1.0] * len(QUESTIONS)
    told = [question for question in QUESTIONS if question.check != "only"]
    sentences = [f"The answer is {question.answer}." for question in told]
    assert grade_answers(told, sentences) == [1.0] * len(told)


def test_a_copy_of_the_question_is_no_answer() -> None:
    right = grade_answers(QUESTIONS, [question.question for question in QUESTIONS])
    assert [question.question for question, reward in zip(QUESTIONS, right, strict=True) if reward] == []


def test_a_part_of_another_word_is_no_answer() -> None:
    hot = next(question for question in QUESTIONS if '"hot"' in question.question)
    eat = next(question for question in QUESTIONS if '"eat"' in question.question)
    assert grade_answers([hot, hot, eat, eat], ["Scolding!", "COLD.", "chocolate", "He ate."]) == [0, 1, 0, 1]


def test_the_results_of_the_sums_are_right() -> None:
    for question in of_category("arithmetic"):
        said = re.sub(r"Divide (\d+) by (\d+)", r"Work out \1 / \2", question.question)
        found = re.search(r"(?:What is|Work out) ([\d +*/-]+)[?.]", said)
        assert found is not None
        assert worked_out(ast.parse(found[1], mode="eval").body) == int(question.answer), question.question


@pytest.mark.parametrize(("names", "what"), [(calendar.day_name, "day"), (calendar.month_name, "month")])
def test_what_comes_before_and_after_is_right(names: calendar._localized_day, what: str) -> None:
    ring = [name for name in names if name]
    asked = [re.fullmatch(rf"Which {what} comes (after|before) (\w+)\? .*", q.question) for q in of_category("time")]
    answers = {q.question: q.answer for q in of_category("time")}
    assert sum(match is not None for match in asked) >= 6
    for match in filter(None, asked):
        step = 1 if match[1] == "after" else -1
        assert answers[match[0]] == ring[(ring.index(match[2]) + step) % len(ring)]


def test_the_letters_of_choices_are_dealt_evenly() -> None:
    letters = Counter(question.answer for question in QUESTIONS if question.check == "choice")
    assert set(letters) == {"A", "B", "C"} and max(letters.values()) - min(letters.values()) <= 2


def test_capital_letters_are_asked_for_and_checked() -> None:
    capitals = next(question for question in QUESTIONS if question.check == "capitals")
    assert grade_answers([capitals, capitals], [capitals.answer.lower(), capitals.answer]) == [0, 1]


def test_a_sample_has_of_each_category_its_share_and_is_always_the_same() -> None:
    chosen = choose_questions(100)
    assert chosen == choose_questions(100) and set(chosen) < set(QUESTIONS)
    assert 95 <= len(chosen) <= 105
    whole, part = (Counter(question.category for question in asked) for asked in (QUESTIONS, chosen))
    assert all(abs(part[name] - whole[name] * 100 / len(QUESTIONS)) <= 1 for name in whole)


def test_the_file_is_plain_text_of_one_question_a_line() -> None:
    lines = SUITE_FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(QUESTIONS)
    assert all(json.loads(line)["question"].isascii() for line in lines)
