"""Graders: from an answer and its row to a reward."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zhub.errors import InvalidRequestError, RewardError
from zhub.graders import StringCheckGrader, check_templates, fill, grade

Operation = Literal["eq", "ne", "like", "ilike"]
PARAM = "method.reinforcement.grader"


def grader(
    operation: Operation = "eq", template: str = "{{sample.output_text}}", reference: str = "{{item.answer}}"
) -> StringCheckGrader:
    return StringCheckGrader(
        type="string_check", name="check", input=template, reference=reference, operation=operation
    )


@pytest.mark.parametrize(
    ("operation", "answer", "wanted", "reward"),
    [
        ("eq", "4", "4", 1.0),
        ("eq", "4 ", "4", 0.0),
        ("eq", "A", "a", 0.0),
        ("ne", "4", "4", 0.0),
        ("ne", "5", "4", 1.0),
        ("like", "it is 4.", "4", 1.0),
        ("like", "4", "it is 4.", 0.0),
        ("like", "Paris", "paris", 0.0),
        ("ilike", "in PARIS now", "paris", 1.0),
        ("ilike", "STRASSE", "straße", 1.0),
        ("ilike", "London", "paris", 0.0),
    ],
)
def test_an_operation_does_what_its_name_says(operation: Operation, answer: str, wanted: str, reward: float) -> None:
    assert grade(grader(operation), answer, {"answer": wanted}) == reward


@given(st.text(), st.text())
def test_a_reward_is_nothing_or_one_and_ne_is_the_opposite_of_eq(answer: str, wanted: str) -> None:
    rewards = [grade(grader(operation), answer, {"answer": wanted}) for operation in ("eq", "ne")]
    assert sorted(rewards) == [0.0, 1.0]


@given(st.text(), st.text(), st.text())
def test_like_finds_the_reference_anywhere(before: str, wanted: str, after: str) -> None:
    assert grade(grader("like"), before + wanted + after, {"answer": wanted}) == 1.0


@given(st.text())
def test_an_answer_that_looks_like_a_template_is_not_filled_in(wanted: str) -> None:
    item = {"answer": wanted, "secret": "s"}
    assert fill(grader(), "{{sample.output_text}}", "{{item.secret}}", item) == "{{item.secret}}"


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{{sample.output_text}}", "out"),
        ("{{ sample.output_text }}", "out"),
        ("[{{item.answer}}]", "[4]"),
        ("{{item.deep.er}}", "x"),
        ("{{item.answer}}{{item.answer}}", "44"),
        ("no template", "no template"),
        ("{single}", "{single}"),
    ],
)
def test_placeholders_are_filled_in(template: str, filled: str) -> None:
    assert fill(grader(), template, "out", {"answer": "4", "deep": {"er": "x"}}) == filled


@pytest.mark.parametrize(("value", "filled"), [(4, "4"), (2.5, "2.5"), (True, "true"), (False, "false"), (None, "")])
def test_values_are_written_as_json_writes_them(value: object, filled: str) -> None:
    assert fill(grader(), "{{item.answer}}", "", {"answer": value}) == filled


@pytest.mark.parametrize("item", [{}, {"answer": {}}, {"answer": "text"}, {"answer": [1]}])
def test_a_row_without_the_column_is_an_error_that_names_it(item: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=r"'check'.*item\.answer\.value"):
        grade(grader(reference="{{item.answer.value}}"), "4", item)


def test_templates_that_every_row_can_fill_in_are_accepted() -> None:
    check_templates(grader(), {"answer": 10, "extra": 3}, 10, param=PARAM)


@pytest.mark.parametrize(
    ("made", "field", "message"),
    [
        (
            grader(reference="{{item.solution}}"),
            "reference",
            "'solution', which no row has. Columns found: answer, extra",
        ),
        (grader(reference="{{item.extra}}"), "reference", "'extra', which 7 of 10 rows lack"),
        (grader(reference="{{item}}"), "reference", "unknown placeholder"),
        (grader(template="{{sample.output_json.a}}"), "input", "unknown placeholder"),
        (grader(template="{{output_text}}"), "input", "unknown placeholder"),
        (grader(template="{{sample.output_text"), "input", "cannot read the template"),
        (grader(template="{{sample.output_text | trim}}"), "input", "cannot read the template"),
        (grader(template="{{Item.answer}}"), "input", "cannot read the template"),
        (grader(template="{{item.answer}}"), "input", "never looks at the answer"),
    ],
)
def test_a_template_that_cannot_work_is_refused_by_its_field(made: StringCheckGrader, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_templates(made, {"answer": 10, "extra": 3}, 10, param=PARAM)
    assert (refused.value.param, refused.value.code) == (f"{PARAM}.{field}", "invalid_grader")
    assert message in str(refused.value)


@given(st.text(alphabet="{}. itemsaplox_\n", max_size=60))
def test_a_template_that_was_accepted_can_be_filled_in(template: str) -> None:
    made = grader(reference=template)
    try:
        check_templates(made, {"a": 1, "x": 1}, 1, param=PARAM)
    except InvalidRequestError:
        return
    assert "{{" not in fill(made, template, "out", {"a": "1", "x": "2"})


@pytest.mark.parametrize("change", [{"operation": "regex"}, {"input": 1}, {"extra": 1}, {"reference": None}])
def test_a_grader_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StringCheckGrader.model_validate(grader().model_dump() | change)
