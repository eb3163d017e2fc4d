"""String checks, and the templates that all graders fill in."""

from typing import Any

import pytest
from example_graders import PARAM, Operation, string_check
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zhub.errors import InvalidRequestError, RewardError
from zhub.graders import Grade, GradingTools, Sample, StringCheckGrader, check_templates, grade, grade_all
from zhub.graders.templates import UnreadableAnswerError, fill


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
    assert grade(string_check(operation), answer, {"answer": wanted}) == reward


@given(st.text(), st.text())
def test_a_reward_is_nothing_or_one_and_ne_is_the_opposite_of_eq(answer: str, wanted: str) -> None:
    rewards = [grade(string_check(operation), answer, {"answer": wanted}) for operation in ("eq", "ne")]
    assert sorted(rewards) == [0.0, 1.0]


@given(st.text(), st.text(), st.text())
def test_like_finds_the_reference_anywhere(before: str, wanted: str, after: str) -> None:
    assert grade(string_check("like"), before + wanted + after, {"answer": wanted}) == 1.0


@given(st.text())
def test_an_answer_that_looks_like_a_template_is_not_filled_in(wanted: str) -> None:
    item = {"answer": wanted, "secret": "s"}
    assert fill("check", "{{sample.output_text}}", Sample("{{item.secret}}", item)) == "{{item.secret}}"


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
    assert fill("check", template, Sample("out", {"answer": "4", "deep": {"er": "x"}})) == filled


@pytest.mark.parametrize(
    ("value", "filled"),
    [(4, "4"), (2.5, "2.5"), (True, "true"), (False, "false"), (None, ""), ({"a": ["é"]}, '{"a": ["é"]}')],
)
def test_values_are_written_as_json_writes_them(value: object, filled: str) -> None:
    assert fill("check", "{{item.answer}}", Sample("", {"answer": value})) == filled


@pytest.mark.parametrize("item", [{}, {"answer": {}}, {"answer": "text"}, {"answer": [1]}])
def test_a_row_without_the_column_is_an_error_that_names_it(item: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=r"'check'.*item\.answer\.value"):
        grade(string_check(reference="{{item.answer.value}}"), "4", item)


def test_templates_that_every_row_can_fill_in_are_accepted() -> None:
    check_templates(string_check(), {"answer": 10, "extra": 3}, 10, param=PARAM)


@pytest.mark.parametrize(
    ("made", "field", "message"),
    [
        (
            string_check(reference="{{item.anwser}}"),
            "reference",
            "'anwser', which no row has. Did you mean 'answer'? Columns found: answer, extra",
        ),
        (
            string_check(reference="{{item.solution}}"),
            "reference",
            "'solution', which no row has. Columns found: answer, extra",
        ),
        (string_check(reference="{{item.extra}}"), "reference", "'extra', which 7 of 10 rows lack"),
        (string_check(reference="{{item}}"), "reference", "unknown placeholder"),
        (string_check(template="{{sample.output_tools.a}}"), "input", "unknown placeholder"),
        (string_check(template="{{output_text}}"), "input", "unknown placeholder"),
        (string_check(template="{{sample.output_text"), "input", "cannot read the template"),
        (string_check(template="{{sample.output_text | trim}}"), "input", "cannot read the template"),
        (string_check(template="{{Item.answer}}"), "input", "cannot read the template"),
        (string_check(template="{{item.answer}}"), "input", "never looks at the answer"),
    ],
)
def test_a_template_that_cannot_work_is_refused_by_its_field(made: StringCheckGrader, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_templates(made, {"answer": 10, "extra": 3}, 10, param=PARAM)
    assert (refused.value.param, refused.value.code) == (f"{PARAM}.{field}", "invalid_grader")
    assert message in str(refused.value)


@given(st.text(alphabet="{}. itemsaplox_\n", max_size=60))
def test_a_template_that_was_accepted_can_be_filled_in(template: str) -> None:
    made = string_check(reference=template)
    try:
        check_templates(made, {"a": 1, "x": 1}, 1, param=PARAM)
    except InvalidRequestError:
        return
    try:
        assert "{{" not in fill("check", template, Sample('{"a": 1, "x": 2}', {"a": "1", "x": "2"}))
    except RewardError as exc:
        assert "no column 'item." in str(exc)  # deeper than what the count of columns knows
    except UnreadableAnswerError:
        assert "output_json" in template


@pytest.mark.parametrize("change", [{"operation": "regex"}, {"input": 1}, {"extra": 1}, {"reference": None}])
def test_a_grader_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StringCheckGrader.model_validate(string_check().model_dump() | change)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"n": {"m": 4}}', Grade(1.0)),
        ('{"n": {"m": 5}}', Grade(0.0)),
        ('{"n": 4}', Grade(0.0, parsed=False, detail="the answer has no '{{sample.output_json.n.m}}'")),
    ],
)
def test_a_template_looks_into_an_answer_that_is_json(answer: str, found: Grade) -> None:
    made = string_check(template="{{sample.output_json.n.m}}")
    assert grade_all(made, [Sample(answer, {"answer": 4})], GradingTools()) == [found]


def test_an_answer_that_is_no_json_is_not_parsed() -> None:
    (found,) = grade_all(
        string_check(template="{{sample.output_json.n}}"), [Sample("n", {"answer": 4})], GradingTools()
    )
    assert (found.reward, found.parsed) == (0.0, False)


def test_an_error_names_the_line_of_the_row() -> None:
    with pytest.raises(RewardError, match="'check': line 17: the row has no column 'item.answer'"):
        grade_all(string_check(), [Sample("4", {"answer": "4"}, 16), Sample("4", {}, 17)], GradingTools())
