"""Rewards by a judge: a model that reads the answer and replies with a number."""

import json
import re
from collections.abc import Sequence
from typing import Any

from zhub.errors import RewardError
from zhub.graders.samples import Grade, GradingTools, Sample
from zhub.graders.templates import UnreadableAnswerError, fill
from zhub.graders.types import ScoreModelGrader

NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
OBJECT = re.compile(r"\{[^{}]*\}")
KEYS = ("result", "score")
MAX_DIGITS = 30


def grade_by_model(grader: ScoreModelGrader, samples: Sequence[Sample], tools: GradingTools) -> list[Grade]:
    """Ask the judge about all samples at once; the reward is the number in its reply.

    A judgement without a number within the range gets the low end of the range, and counts as not parsed.

    Raises:
        RewardError: this process has no judge.
    """
    if tools.judge is None:
        raise RewardError(
            grader.name, f"it asks the model '{grader.model}', and no model answers here. Use another type of grader."
        )
    grades: dict[int, Grade] = {}
    conversations = {}
    for index, sample in enumerate(samples):
        try:
            conversations[index] = [
                {"role": message.role, "content": fill(grader.name, message.content, sample)}
                for message in grader.input
            ]
        except UnreadableAnswerError as exc:
            grades[index] = Grade(grader.range[0], parsed=False, detail=str(exc))
    judgements = tools.judge(grader, list(conversations.values()))
    for index, judgement in zip(conversations, judgements, strict=True):
        grades[index] = _grade(grader, judgement)
    return [grades[index] for index in range(len(samples))]


def _grade(grader: ScoreModelGrader, judgement: str) -> Grade:
    low, high = grader.range
    score = read_score(judgement)
    if score is None or not low <= score <= high:
        detail = f"the judge said no number from {low:g} to {high:g}: {judgement[:200]!r}"
        return Grade(low, parsed=False, detail=detail)
    return Grade(score, detail=judgement[:200])


def read_score(judgement: str) -> float | None:
    """The ``result`` or ``score`` of the last JSON object in a judgement, else its last number; or None."""
    for text in reversed(OBJECT.findall(judgement)):
        if (score := _keyed(text)) is not None:
            return score
    numbers = NUMBER.findall(judgement)
    return float(numbers[-1]) if numbers and len(numbers[-1]) <= MAX_DIGITS else None


def _keyed(text: str) -> float | None:
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for key in KEYS:
        value = values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
    return None
