"""From answers to rewards: one function for each type of grader, and the table that finds it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zhub.errors import RewardError, RewardNotANumberError
from zhub.graders import formula
from zhub.graders.choice import grade_choice
from zhub.graders.code_tests import grade_code
from zhub.graders.isolation import call_isolated, read_with
from zhub.graders.json_schema import grade_json
from zhub.graders.judge import grade_by_model
from zhub.graders.limits import ANSWER_CHARACTERS, ITEM_CHARACTERS, TooLargeError, check_size
from zhub.graders.numeric import grade_numeric
from zhub.graders.python_source import grade_python
from zhub.graders.samples import Grade, GradingTools, Sample
from zhub.graders.similarity import grade_similarity
from zhub.graders.templates import fill
from zhub.graders.types import Grader, MultiGrader, StringCheckGrader

NO_TOOLS = GradingTools()
TOO_LONG = f"the answer has more than {ANSWER_CHARACTERS:,} characters"


def grade_all(grader: Grader, samples: Sequence[Sample], tools: GradingTools) -> list[Grade]:
    """Grade answers, in their order. What cannot be bounded runs in processes that can be ended.

    An answer that is too long to be read, or that cannot be graded in time, is worth 0 and counts as not parsed.

    Raises:
        RewardError: the grader failed on a row, or the row lacks what it needs; with its line.
        RewardTimeoutError: a schema, or many answers of one batch, took too long.
        SandboxUnavailableError: the grader runs code, and there is no sandbox.
    """
    for sample in samples:
        try:
            check_size(sample.item, most=ITEM_CHARACTERS)
        except TooLargeError as exc:
            raise RewardError(grader.name, f"{sample.where}the row is too large: it {exc}. Shorten it.") from exc
    readable = [sample for sample in samples if len(sample.output_text) <= ANSWER_CHARACTERS]
    grades = iter(GRADERS[grader.type](grader, readable, tools) if readable else ())
    return [
        next(grades) if len(sample.output_text) <= ANSWER_CHARACTERS else Grade(0.0, parsed=False, detail=TOO_LONG)
        for sample in samples
    ]


def grade(grader: Grader, output_text: str, item: Mapping[str, Any]) -> float:
    """Return the reward of one answer, by a grader that needs no tools.

    Raises:
        RewardError, SandboxUnavailableError: see ``grade_all``.
    """
    return grade_all(grader, [Sample(output_text, item)], NO_TOOLS)[0].reward


def grade_string(grader: StringCheckGrader, sample: Sample) -> Grade:
    answer = fill(grader.name, grader.input, sample)
    wanted = fill(grader.name, grader.reference, sample)
    match grader.operation:
        case "eq":
            return Grade(float(answer == wanted))
        case "ne":
            return Grade(float(answer != wanted))
        case "like":
            return Grade(float(wanted in answer))
        case "ilike":
            return Grade(float(wanted.casefold() in answer.casefold()))


def grade_multi(grader: MultiGrader, samples: Sequence[Sample], tools: GradingTools) -> list[Grade]:
    grades = {name: grade_all(part, samples, tools) for name, part in grader.graders.items()}
    return [
        combine(grader, sample, {name: of_part[index] for name, of_part in grades.items()})
        for index, sample in enumerate(samples)
    ]


def combine(grader: MultiGrader, sample: Sample, grades: Mapping[str, Grade]) -> Grade:
    """The reward of a ``multi`` from the grades of its graders on one sample."""
    rewards = {name: grade.reward for name, grade in grades.items()}
    try:
        reward = formula.evaluate(grader.calculate_output, rewards)
    except (ArithmeticError, ValueError) as exc:
        raise _no_number(grader, sample, rewards, str(exc)) from exc
    if not math.isfinite(reward):
        raise _no_number(grader, sample, rewards, f"it gives {reward}")
    details = "; ".join(f"{name}: {grade.detail}" for name, grade in grades.items() if grade.detail)
    return Grade(reward, all(grade.parsed for grade in grades.values()), details or None)


def _no_number(
    grader: MultiGrader, sample: Sample, rewards: Mapping[str, float], problem: str
) -> RewardNotANumberError:
    values = ", ".join(f"{name} = {value:g}" for name, value in rewards.items())
    return RewardNotANumberError(
        grader.name,
        f"{sample.where}calculate_output has no value for {values}: {problem}. "
        "Guard it, for instance by max(…, 0.001).",
    )


def _here(function: Callable[[Any, Sample], Grade]) -> Callable[[Any, Sequence[Sample], GradingTools], list[Grade]]:
    """For graders of one sample whose cost grows with the length of capped texts, and not faster."""
    return lambda grader, samples, _tools: [read_with(function, grader, sample) for sample in samples]


def _isolated(function: Callable[[Any, Sample], Grade]) -> Callable[[Any, Sequence[Sample], GradingTools], list[Grade]]:
    """For all other graders of one sample."""
    return lambda grader, samples, tools: call_isolated(function, grader, samples, tools)


GRADERS: dict[str, Callable[[Any, Sequence[Sample], GradingTools], list[Grade]]] = {
    "string_check": _here(grade_string),
    "text_similarity": _isolated(grade_similarity),
    "numeric": _isolated(grade_numeric),
    "multiple_choice": _isolated(grade_choice),
    "json_schema": _isolated(grade_json),
    "python": grade_python,
    "code_tests": grade_code,
    "score_model": grade_by_model,
    "multi": grade_multi,
}
