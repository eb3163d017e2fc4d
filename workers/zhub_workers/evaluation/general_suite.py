"""The general suite: short questions with known answers, to see what a training has cost a base elsewhere.

It is our own text and the same for every base, in ``general_suite.jsonl``: a category, a question, its answer, and how
an answer is checked (``CHECKS``). Answers are greedy and short, so that a suite costs about as much as a score.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zhub.graders import Grader, MultiGrader, MultipleChoiceGrader, NumericGrader, Sample, StringCheckGrader, grade_all
from zhub.graders.samples import GradingTools

SUITE_FILE = Path(__file__).with_name("general_suite.jsonl")
MAX_NEW_TOKENS = 16
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Question:
    """``other`` stands in the question like the answer does: an answer with both only copies the question."""

    category: str
    question: str
    answer: str
    check: str
    other: str = ""


@cache
def all_questions() -> tuple[Question, ...]:
    with SUITE_FILE.open(encoding="utf-8") as file:
        return tuple(Question(**json.loads(line)) for line in file)


@cache
def suite_digest() -> str:
    """SHA-256 of the suite: answers are comparable where it is the same."""
    return hashlib.sha256(SUITE_FILE.read_bytes()).hexdigest()


def choose_questions(count: int) -> list[Question]:
    """About ``count`` questions, of each category the same share, always the same ones; in the suite's order."""
    of_category: dict[str, list[Question]] = {}
    for question in all_questions():
        of_category.setdefault(question.category, []).append(question)
    share = min(1.0, count / len(all_questions()))
    chosen = {
        question
        for questions in of_category.values()
        for question in sorted(questions, key=_position)[: max(1, round(share * len(questions)))]
    }
    return [question for question in all_questions() if question in chosen]


def grade_answers(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """1 for each answer that is right, else 0."""
    rewards = [0.0] * len(questions)
    for name, check in CHECKS.items():
        places = [place for place, question in enumerate(questions) if question.check == name]
        samples = [check.sample(questions[place], answers[place]) for place in places]
        for place, grade in zip(places, grade_all(check.grader, samples, GradingTools()), strict=True):
            rewards[place] = grade.reward
    return rewards


@dataclass(frozen=True)
class Check:
    """A grader, and how it is to see answers and the texts that they are compared with."""

    grader: Grader
    read: Callable[[str], str]

    def sample(self, question: Question, answer: str) -> Sample:
        item: Mapping[str, str] = {"answer": self.read(question.answer), "other": self.read(question.other)}
        return Sample(self.read(answer), item)


def _words(text: str) -> str:
    """The words alone, without regard to case, each between blanks: what contains it contains the whole word."""
    return _cased_words(text.casefold())


def _cased_words(text: str) -> str:
    return f" {' '.join(WORD.findall(text))} "


def _unchanged(text: str) -> str:
    return text


def _has(name: str, column: str) -> StringCheckGrader:
    reference = f"{{{{item.{column}}}}}"
    return StringCheckGrader(
        type="string_check", name=name, input="{{sample.output_text}}", reference=reference, operation="like"
    )


CHECKS: Mapping[str, Check] = {
    "words": Check(_has("words", "answer"), _words),
    "word_alone": Check(
        MultiGrader(
            type="multi",
            name="word_alone",
            graders={"right": _has("right", "answer"), "copied": _has("copied", "other")},
            calculate_output="right * (1 - copied)",
        ),
        _words,
    ),
    "capitals": Check(_has("capitals", "answer"), _cased_words),
    "only": Check(_has("only", "answer").model_copy(update={"operation": "eq"}), _words),
    "number": Check(NumericGrader(type="numeric", name="number", reference="{{item.answer}}"), _unchanged),
    "choice": Check(
        MultipleChoiceGrader(type="multiple_choice", name="choice", reference="{{item.answer}}", n_choices=3),
        _unchanged,
    ),
}


def _position(question: Question) -> str:
    return hashlib.sha256(question.question.encode()).hexdigest()
