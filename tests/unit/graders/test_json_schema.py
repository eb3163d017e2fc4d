"""Answers that are JSON of a schema."""

from typing import Any

import pytest

from zhub.errors import RewardError
from zhub.graders import GradingTools, JsonSchemaGrader, Sample, grade, grade_all


def json_grader(schema: dict[str, Any], **more: Any) -> JsonSchemaGrader:
    return JsonSchemaGrader(type="json_schema", name="j", json_schema=schema, **more)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize(
    ("answer", "reward", "parsed"),
    [
        ('{"name": "Ada", "age": 36}', 1.0, True),
        ('```json\n{"name": "Ada", "age": 36}\n```', 1.0, True),
        ('{"name": "ada", "age": 36}', 0.0, True),
        ('{"name": "Ada"}', 0.0, True),
        ('{"name": "Ada", "age": NaN}', 0.0, False),
        ("Ada is 36.", 0.0, False),
        ("[" * 100_000, 0.0, False),
        ("", 0.0, False),
    ],
)
def test_json_that_fits_its_schema_is_right(answer: str, reward: float, parsed: bool) -> None:
    (found,) = grade_all(json_grader(PERSON), [Sample(answer, {})], GradingTools())
    assert (found.reward, found.parsed) == (reward, parsed)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('{"name": "Bob", "age": 36.0}', 0.5),
        ('{"name": "Bob", "age": 37}', 0.0),
        ('{"name": "Ada"}', 0.0),
    ],
)
def test_fields_that_agree_with_the_reference_are_counted(answer: str, reward: float) -> None:
    made = json_grader(PERSON, reference="{{item.person}}")
    assert grade(made, answer, {"person": {"name": "Ada", "age": 36}}) == reward
    assert grade(made, answer, {"person": '{"name": "Ada", "age": 36}'}) == reward


def test_true_is_not_the_number_one() -> None:
    assert grade(json_grader({}, reference="{{item.p}}"), '{"a": true, "b": [1]}', {"p": {"a": 1, "b": [True]}}) == 0


@pytest.mark.parametrize(
    ("schema", "answer", "message"),
    [
        ({"$ref": "https://127.0.0.1:9/schema.json"}, "{}", "none is fetched"),
        ({"$ref": "#"}, "{}", "without end"),
        ({"pattern": "^(a+)+$"}, '"' + "a" * 40 + 'b"', None),
        (
            {"$ref": "#/$defs/0", "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 9} for n in range(9)}
             | {"9": False}},
            "{}",
            "without end",
        ),
    ],
    ids=["a schema elsewhere", "a circle", "a pattern that backtracks", "references that multiply"],
)  # fmt: skip
def test_a_schema_that_would_do_harm_comes_to_an_end(schema: dict[str, Any], answer: str, message: str | None) -> None:
    try:
        found = grade(json_grader(schema), answer, {})
    except RewardError as exc:
        assert message is None or message in str(exc)
    else:
        assert message is None and found == 0
