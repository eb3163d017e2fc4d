"""A model as judge."""

from typing import Any

import pytest
from example_graders import JUDGE

from zhub.graders import GradingTools, Sample, ScoreModelGrader, grade_all, parse_grader
from zhub.graders.judge import read_score


def test_a_judge_is_asked_about_all_answers_at_once() -> None:
    asked: list[Any] = []

    def judge(grader: ScoreModelGrader, conversations: Any) -> list[str]:
        asked.append(list(conversations))
        return ["7", "score: none", "11"]

    samples = [Sample(text, {"answer": "x"}) for text in "abc"]
    found = grade_all(parse_grader(JUDGE, param="grader"), samples, GradingTools(judge=judge))
    assert [(one.reward, one.parsed) for one in found] == [(7.0, True), (0.0, False), (0.0, False)]
    assert asked == [[[{"role": "user", "content": f"Rate {text} against x."}] for text in "abc"]]


@pytest.mark.parametrize(
    ("judgement", "score"),
    [
        ("0.75", 0.75),
        ('{"result": 3}', 3.0),
        ('Thinking {x}. {"steps": [], "score": 0.5} done 9', 0.5),
        ("I give it 4 out of 5, so 0.8", 0.8),
        ("-1", -1.0),
        ("none", None),
        ("9" * 500, None),
        ('{"result": "high"}', None),
        ('{"result": true}', None),
    ],
)
def test_a_judgement_is_read_for_its_number(judgement: str, score: float | None) -> None:
    assert read_score(judgement) == score
