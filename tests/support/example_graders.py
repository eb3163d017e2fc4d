"""Graders to begin with, and the field of a request that they are given in."""

from typing import Any, Literal

from zhub.graders import MultiGrader, StringCheckGrader, parse_grader

Operation = Literal["eq", "ne", "like", "ilike"]
PARAM = "method.reinforcement.grader"


def string_check(
    operation: Operation = "eq", template: str = "{{sample.output_text}}", reference: str = "{{item.answer}}"
) -> StringCheckGrader:
    return StringCheckGrader(
        type="string_check", name="check", input=template, reference=reference, operation=operation
    )


STRING = string_check().model_dump()
PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0\n"}
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "base",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}} against {{item.answer}}."}],
    "range": [0, 10],
}


def multi(formula: str, **more: Any) -> MultiGrader:
    made = parse_grader(
        {"type": "multi", "name": "m", "calculate_output": formula,
         "graders": {"a": string_check().model_dump(), "b": string_check("ne").model_dump()}} | more, param=PARAM,
    )  # fmt: skip
    assert isinstance(made, MultiGrader)
    return made
