"""What is refused of a grader before it costs anything."""

from typing import Any

import pytest
from example_graders import JUDGE, PARAM, PYTHON, STRING, multi

from zhub.errors import InvalidRequestError
from zhub.graders import needs_sandbox, parse_grader
from zhub.graders.parsing import stored_grader


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ("string_check", "", "A grader is an object"),
        ({}, ".type", "no grader type None"),
        ({"type": "strin_check"}, ".type", "Did you mean 'string_check'?"),
        ({"type": "label_model"}, ".type", "Known: string_check"),
        (STRING | {"operation": "regex"}, ".operation", "operation"),
        (STRING | {"inptu": "x"}, ".inptu", "inptu"),
        (STRING | {"input": "{{item.answer}}"}, ".input", "never looks at the answer"),
        (PYTHON | {"source": "def grade(sample, item)\n  pass"}, ".source", "line 1"),
        (PYTHON | {"source": "x = 1"}, ".source", "must define a function grade"),
        (PYTHON | {"source": "def grade(sample): return 1"}, ".source", "two arguments"),
        (PYTHON | {"source": "def grade(a, b, c): return 1"}, ".source", "two arguments"),
        (PYTHON | {"source": "def grade(a, b, *, c): return 1"}, ".source", "two arguments"),
        (PYTHON | {"source": "async def grade(a, b): return 1"}, ".source", "must define a function grade"),
        (PYTHON | {"source": "#" * (257 << 10)}, ".source", "256 KiB"),
        (PYTHON | {"image_tag": "v2"}, ".image_tag", "None"),
        (PYTHON | {"timeout_s": 0}, ".timeout_s", "greater than 0"),
        (
            {"type": "json_schema", "name": "j", "json_schema": {"type": "strin"}},
            ".json_schema",
            "not a valid JSON schema",
        ),
        (
            {"type": "json_schema", "name": "j", "json_schema": {"pattern": "("}},
            ".json_schema",
            "not a valid JSON schema",
        ),
        ({"type": "json_schema", "name": "j", "json_schema": {}, "fields": ["a"]}, "", "'reference'"),
        ({"type": "code_tests", "name": "c", "tests": "assert f(1) == 2"}, ".tests", "must be one column"),
        (JUDGE | {"range": [1, 0]}, ".range", "must ascend"),
        (JUDGE | {"input": []}, ".input", "at least 1"),
        (
            JUDGE | {"input": [{"role": "user", "content": "{{samples}} {{sample.output_text}}"}]},
            ".input.0.content",
            "unknown placeholder",
        ),
        (
            {"type": "multi", "name": "m", "calculate_output": "a", "graders": {"a": PYTHON | {"source": ""}}},
            ".graders.a.source",
            "must define",
        ),
        (
            {"type": "multi", "name": "m", "calculate_output": "a", "graders": {"a": STRING | {"input": "x"}}},
            ".graders.a.input",
            "never looks",
        ),
        (
            {
                "type": "multi",
                "name": "m",
                "calculate_output": "a",
                "graders": {"string_check": STRING | {"operation": "x"}},
            },
            ".graders.string_check.operation",
            "Grader: graders.string_check.operation: ",
        ),
    ],
)
def test_a_grader_that_cannot_work_is_refused_by_its_field(given: Any, param: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_grader(given, param=PARAM)
    assert (refused.value.param, refused.value.code) == (PARAM + param, "invalid_grader")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "def grade(sample, item): return 1",
        "def grade(sample, item, extra=2): return 1",
        "def grade(*args): return 1",
        "def grade(sample, item=None, *, strict=False): return 1",
    ],
)
def test_a_source_whose_grade_takes_two_is_accepted(source: str) -> None:
    assert needs_sandbox(parse_grader(PYTHON | {"source": source}, param=PARAM))


@pytest.mark.parametrize("given", [STRING, PYTHON, JUDGE, multi("a + b").model_dump()], ids=lambda given: given["type"])
def test_a_grader_written_down_is_read_as_it_was(given: Any) -> None:
    made = parse_grader(given, param=PARAM)
    assert parse_grader(made.model_dump(mode="json"), param=PARAM) == made


@pytest.mark.parametrize("given", [STRING, PYTHON, JUDGE, multi("a + b").model_dump()], ids=lambda given: given["type"])
def test_a_stored_grader_is_read_as_it_was_parsed(given: Any) -> None:
    assert stored_grader(given, param=PARAM) == parse_grader(given, param=PARAM)


@pytest.mark.parametrize(
    "given",
    [PYTHON | {"source": "no ( Python"}, multi("a + b").model_dump() | {"calculate_output": "no ( formula"}],
    ids=["source", "formula"],
)
def test_pythons_reader_does_not_see_a_stored_grader_again(given: Any) -> None:
    assert stored_grader(given, param=PARAM).name == given["name"]


def test_a_stored_grader_of_another_form_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidRequestError, match="extra") as refused:
        stored_grader(STRING | {"extra": 1}, param=PARAM)
    assert refused.value.param == f"{PARAM}.extra"
