"""A grader is refused alike wherever a user gives one: with the same message, and by the same field."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from suites import GRADER

Ask = Callable[..., Any]
Place = tuple[str, Callable[[Any, str, str], dict[str, Any]], str]

JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "tiny",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}}."}],
}
PYTHON = {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 1.0\n"}


def training(grader: Any, **options: Any) -> dict[str, Any]:
    return {"model": "tiny", "method": {"type": "reinforcement", "reinforcement": {"grader": grader}}} | options


def gate(grader: Any, file: str) -> dict[str, Any]:
    return {"suites": [{"file": file, "grader": GRADER}, {"file": file, "grader": grader}]}


# Each place with its path, its body from grader, file and version, and the field that the grader is there.
PLACES: dict[str, Place] = {
    "a training": (
        "/fine_tuning/jobs",
        lambda grader, file, _: training(grader, training_file=file),
        "method.reinforcement.grader",
    ),
    "an estimate": (
        "/fine_tuning/jobs/estimate",
        lambda grader, file, _: training(grader, training_file=file),
        "method.reinforcement.grader",
    ),
    "the gate of a training": (
        "/fine_tuning/jobs",
        lambda grader, file, _: training(GRADER, training_file=file, promotion=gate(grader, file)),
        "promotion.suites.1.grader",
    ),
    "an evaluation": (
        "/evaluations",
        lambda grader, file, version: {"model": version, "file": file, "grader": grader},
        "grader",
    ),
    "a promotion": (
        "/promotions",
        lambda grader, file, version: {"model": version} | gate(grader, file),
        "suites.1.grader",
    ),
    "a schedule": (
        "/schedules",
        lambda grader, _file, _: {"name": "s", "dataset": "suite", "cron": "0 3 * * 1", "training": training(grader)},
        "training.method.reinforcement.grader",
    ),
    "the gate of a schedule": (
        "/schedules",
        lambda grader, file, _: {
            "name": "s",
            "dataset": "suite",
            "cron": "0 3 * * 1",
            "training": training(GRADER, promotion=gate(grader, file)),
        },
        "training.promotion.suites.1.grader",
    ),
    "validating": ("/fine_tuning/alpha/graders/validate", lambda grader, _file, _: {"grader": grader}, "grader"),
    "running": (
        "/fine_tuning/alpha/graders/run",
        lambda grader, _file, _: {"grader": grader, "model_sample": "x"},
        "grader",
    ),
}
# Where the request says which rows are graded, and which base model its job works with.
WITH_A_JOB = [place for place in PLACES if place not in ("validating", "running")]


# Each with the field at fault within it, and how the message begins.
BAD: list[tuple[Any, str, str]] = [
    (["string_check"], "", "A grader is an object with a 'type': string_check, text_similarity, "),
    ({"type": "strin_check"}, ".type", "There is no grader type 'strin_check'. Did you mean 'string_check'? "),
    (
        GRADER | {"operation": "regex"},
        ".operation",
        "Grader: operation: Input should be 'eq', 'ne', 'like' or 'ilike' (got 'regex').",
    ),
    (GRADER | {"input": "{{item.answer}}"}, ".input", "Grader 'exact' never looks at the answer: use {{sample."),
    (GRADER | {"reference": "{{items}}"}, ".reference", "Grader 'exact': unknown placeholder {{items}}. Use "),
    (PYTHON | {"source": "def grade(sample): return 1"}, ".source", "Grader: source: line 1: grade must take two"),
    (
        {"type": "json_schema", "name": "j", "json_schema": {"type": "nonsense"}},
        ".json_schema",
        "Grader 'j': json_schema is not a valid JSON schema: $.type: 'nonsense' is not valid under any",
    ),
    (
        {"type": "multi", "name": "m", "graders": {"a": GRADER, "b": PYTHON}, "calculate_output": "a"},
        "",
        "Grader: the formula 'a' does not use the grader 'b': use it or leave it out.",
    ),
    (
        {
            "type": "multi",
            "name": "m",
            "graders": {"j": {"type": "json_schema", "name": "j", "json_schema": {"type": "nonsense"}}},
            "calculate_output": "j",
        },
        ".graders.j.json_schema",
        "Grader 'j': json_schema is not a valid JSON schema: $.type: 'nonsense' is not valid under any",
    ),
    (
        JUDGE | {"model": "unheard-of"},
        ".model",
        "Grader 'judge': a judge is a base model. No such base model: 'unheard-of'. Base models: other, tiny. ",
    ),
    (
        {"type": "multi", "name": "m", "graders": {"a": JUDGE | {"model": "nobody"}}, "calculate_output": "a"},
        ".graders.a.model",
        "Grader 'judge': a judge is a base model. No such base model: 'nobody'. Base models: other, tiny. ",
    ),
]
# These are bad for a suite whose only column is "answer", and a job of the base model "tiny".
UNFIT: list[tuple[Any, str, str]] = [
    (
        JUDGE | {"model": "other"},
        ".model",
        "Grader 'judge': the judge is 'other', and this job works with 'tiny'. A job can only ask its own base model.",
    ),
    (
        GRADER | {"reference": "{{item.solution}}"},
        ".reference",
        "Grader 'exact' needs the column 'solution', which no row has. Columns found: answer.",
    ),
]


@pytest.mark.parametrize("place", PLACES)
def test_a_bad_grader_is_refused_alike_everywhere(
    ask: Ask, suite_file: str, publish_version: Ask, make_base_model: Ask, place: str, subtests: pytest.Subtests
) -> None:
    make_base_model("other")
    version = publish_version()
    path, body, param = PLACES[place]
    for grader, at_fault, message in BAD + (UNFIT if place in WITH_A_JOB else []):
        with subtests.test(message=message):
            with pytest.raises(openai.BadRequestError) as refused:
                ask("post", path, body(grader, suite_file, version))
            assert (refused.value.code, refused.value.param) == ("invalid_grader", param + at_fault)
            assert refused.value.body["message"].startswith(message)  # type: ignore[index]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("grader", [GRADER, JUDGE], ids=["a comparison", "the job's base as judge"])
def test_a_grader_that_can_grade_is_accepted_everywhere(
    ask: Ask, suite_file: str, publish_version: Ask, place: str, grader: Any
) -> None:
    path, body, _ = PLACES[place]
    assert ask("post", path, body(grader, suite_file, publish_version()))


def test_two_base_models_cannot_be_compared_by_a_judge_that_is_one_of_them(
    ask: Ask, suite_file: str, make_base_model: Ask
) -> None:
    make_base_model("other")
    body = {"model": "tiny", "compare_with": ["other"], "file": suite_file, "grader": JUDGE}
    with pytest.raises(openai.BadRequestError, match="the judge is 'tiny', and this job works with 'other'") as refused:
        ask("post", "/evaluations", body)
    assert refused.value.param == "grader.model"
