"""Calls of a grader's own function on samples, in processes that can be ended, and what becomes of what was ended."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from zhub.errors import RewardTimeoutError
from zhub.graders.limits import MAX_LOST
from zhub.graders.processes import Lost, own_processes
from zhub.graders.samples import Grade, GradingTools, Sample
from zhub.graders.templates import UnreadableAnswerError
from zhub.graders.types import Grader, JsonSchemaGrader

Result = TypeVar("Result")


def call_isolated(
    function: Callable[[Any, Sample], Result], grader: Grader, samples: Sequence[Sample], tools: GradingTools
) -> list[Result | Grade]:
    """Call a module's function on the grader and each sample; a grade of 0, not parsed, where a sample has no result.

    What was lost is noted with its line and the reason.

    Raises:
        RewardTimeoutError: more than MAX_LOST samples took too long, or one did by a schema: its author can mend it.
        Exception: what the function raised.
    """
    most_lost = 0 if isinstance(grader, JsonSchemaGrader) else MAX_LOST
    results = own_processes().map(partial(read_with, function, grader), samples, most_lost=most_lost)
    lost = [(sample, result) for sample, result in zip(samples, results, strict=True) if isinstance(result, Lost)]
    for sample, result in lost[:MAX_LOST]:
        tools.note("error", f"{sample.where}grader '{grader.name}' gave up an answer: it {result.reason}")
    if len(lost) > most_lost:
        sample, first = lost[0]
        remedy = "Simplify the schema." if isinstance(grader, JsonSchemaGrader) else "Shorten what it has to read."
        raise RewardTimeoutError(
            grader.name, f"{sample.where}it {first.reason} on one answer and was stopped. {remedy}"
        )
    return [_lost(result) if isinstance(result, Lost) else result for result in results]


def read_with(function: Callable[[Any, Sample], Result], grader: Grader, sample: Sample) -> Result | Grade:
    try:
        return function(grader, sample)
    except UnreadableAnswerError as exc:
        return Grade(0.0, parsed=False, detail=str(exc))


def _lost(lost: Lost) -> Grade:
    return Grade(0.0, parsed=False, detail=f"the answer was not graded: it {lost.reason}", in_time=False)
