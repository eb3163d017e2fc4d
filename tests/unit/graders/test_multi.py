"""Several graders, and the formula that joins their rewards."""

from typing import Any

import pytest
from example_graders import JUDGE, PARAM, PYTHON, STRING, multi, string_check
from hypothesis import given
from hypothesis import strategies as st

from zhub.errors import InvalidRequestError, RewardError
from zhub.graders import check_templates, grade, judge_models, needs_sandbox
from zhub.graders.formula import check, evaluate


@pytest.mark.parametrize(
    ("formula", "reward"),
    [
        ("0.75 * a + 0.25 * b", 0.75),
        ("min(a, b) - max(a, b, 0.5)", -1.0),
        ("abs(b - a) + floor(0.9 * a) + ceil(0.1 + b)", 2.0),
        ("exp(log(a)) + sqrt(4 * a) + b", 3.0),
        ("2^3 * a + b", 8.0),
        ("1 + 2^2 * a + b", 5.0),
        ("-(a + b) / 2", -0.5),
    ],
)
def test_a_formula_joins_the_rewards(formula: str, reward: float) -> None:
    assert grade(multi(formula), "4", {"answer": "4"}) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("a + c", "'c', which is no grader"),
        ("a", "does not use the grader 'b'"),
        ("a +", "cannot be read"),
        ("a + b + __import__('os').system('true')", "a formula has numbers"),
        ("a.real + b", "a formula has numbers"),
        ("a + b + 'x'", "a formula has numbers"),
        ("a if b else 0", "a formula has numbers"),
        ("a + b + True", "a formula has numbers"),
        ("max() + a + b", "a formula has numbers"),
        ("a + b" + " + 1" * 300, "at most 200 operations"),
        ("-" * 900 + "a + b", "at most 200 operations"),
        ("sqrt(a, b)", "takes 1 argument"),
        ("(" * 300 + "a" + ")" * 300, "cannot be read"),
    ],
)
def test_a_formula_that_cannot_be_computed_is_refused(formula: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match="Grader: ") as refused:
        multi(formula)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "formula", ["a / b", "log(b) + a", "10 ^ 400 + a + b", "exp(10000 * a) + b", "9^9^9^9 + a + b"]
)
def test_a_formula_without_a_value_is_an_error_that_says_for_what(formula: str) -> None:
    with pytest.raises(RewardError, match="a = 1, b = 0") as failed:
        grade(multi(formula), "4", {"answer": "4"})
    assert failed.value.code == "reward_not_a_number"


@given(st.text(alphabet="ab12+-*/()., ^minlog", max_size=30))
def test_a_formula_that_was_accepted_gives_a_number_or_says_why_not(formula: str) -> None:
    try:
        check(formula, ["a", "b"])
    except ValueError:
        return
    try:
        evaluate(formula, {"a": 1.0, "b": 0.0})
    except (ArithmeticError, ValueError):
        return


@pytest.mark.parametrize(
    ("graders", "names"),
    [
        (string_check().model_dump(), ["check"]),
        ([string_check().model_dump(), string_check().model_dump() | {"name": "b"}], ["check", "b"]),
        ({"x": string_check().model_dump()}, ["x"]),
    ],
    ids=["one", "a list", "by name"],
)
def test_the_graders_of_a_multi_come_in_three_shapes(graders: Any, names: list[str]) -> None:
    assert list(multi(" + ".join(names), graders=graders).graders) == names


def test_columns_are_checked_in_every_part_of_a_multi() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_templates(multi("a + b"), {"other": 10}, 10, param=PARAM)
    assert refused.value.param == f"{PARAM}.graders.a.reference"


def test_what_a_grader_needs_is_found_in_its_parts() -> None:
    parts = {"a": JUDGE, "b": JUDGE | {"model": "other"}, "c": JUDGE, "d": STRING}
    made = multi("a + b + c + d", graders=parts)
    assert (judge_models(made), needs_sandbox(made)) == (["base", "other"], False)
    assert needs_sandbox(multi("a + d", graders={"a": PYTHON, "d": STRING}))
