"""The final number of a text."""

import json
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from counted_steps import counted_steps
from hypothesis import given
from hypothesis import strategies as st
from nasty_texts import NASTY

from zhub.errors import RewardError
from zhub.graders import GradingTools, NumericGrader, Sample, grade, grade_all
from zhub.graders.number_tokens import tokens_of
from zhub.graders.numeric import MAX_READ_CHARACTERS, final_number

DATA = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("#### 42", 42),
        ("so 6 * 7 = 42\n#### 42\n", 42),
        ("#### 42 (not 43)", 42),
        ("#### 70,000", 70_000),
        ("70,000", 70_000),
        ("1,234", 1234),
        ("1,234,567.89", Fraction("1234567.89")),
        ("-5", -5),
        ("\u22125", -5),
        ("The answer is -5.", -5),
        ("x = -5", -5),
        ("it lies in 3-5", 5),
        ("10 - 5 = 5", 5),
        ("3.14", Fraction("3.14")),
        (".5", Fraction("0.5")),
        ("It is 5.", 5),
        ("$18", 18),
        ("-$18.50", Fraction("-18.5")),
        ("$-18.50", Fraction("-18.5")),
        ("€1,000", 1000),
        ("18 dollars", 18),
        ("5km", 5),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\boxed{42}", 42),
        (r"\boxed{\frac{1}{2}} is it, not 7", Fraction(1, 2)),
        (r"\boxed{70{,}000}", 70_000),
        ("The answer is 12. I checked it 3 times.", 12),
        ("The answer: 12 apples in 4 boxes", 12),
        ("**Answer:** **12**", 12),
        ("1e3", 1000),
        ("1.5E-2", Fraction("0.015")),
        ("1, 2, 3", 3),
        ("first 7, then 8", 8),
        ("1/0 or 4", 4),
        ("The answer is $80,000 + $50,000 = $130,000", 130_000),
        ("The answer is $80,000 + $50,000 = $130,000.", 130_000),
        ("5 x 4 = 20", 20),
        ("The answer is 5 x 4 = 20", 20),
        ("The answer is 5 \u00d7 4 = 20 eggs", 20),
        ("#### 2+3=5", 5),
        ("#### x = 2 + 3 = 5", 5),
        ("#### 3 apples + 2 pears = 5 fruits", 5),
        ("#### (2 + 3) * 4 = 20", 20),
        ("The answer is 200 square feet + 300 square feet = 500 square feet", 500),
        ("The answer is 12, since 3 * 4 = 12 and 5 + 5 = 10", 12),
        ("The answer is 12 because x = 7", 12),
        ("The answer is 12 (x = 7)", 12),
        ("The answer is n + 5 = 12", 12),
        ("18 m^2", 18),
        ("18 m\u00b2", 18),
        (r"\boxed{18 \text{ m}^2}", 18),
        (r"\boxed{18\,\mathrm{m}^{2}}", 18),
        (r"\boxed{10^5}", 100_000),
        (r"\boxed{10^{5}}", 100_000),
        (r"\boxed{2^{-3}}", Fraction(1, 8)),
        (r"3 \times 10^5", 300_000),
        ("3 x 10^5", 300_000),
        ("10**5", 100_000),
        ("10\u2075", 100_000),
        (r"\boxed{90^\circ}", 90),
        (r"\boxed{90^{\circ}}", 90),
        ("90\u00b0", 90),
        ("$1.5 million", 1_500_000),
        ("1.5 million dollars", 1_500_000),
        ("$1.5M", 1_500_000),
        ("2 hundred thousand", 200_000),
        ("$50k", 50_000),
        ("5m", 5),
        (r"\frac34", Fraction(3, 4)),
        (r"-\frac34", Fraction(-3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("1\u00bd", Fraction(3, 2)),
        ("\u00be", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        ("10 000", 10_000),
        ("10\u00a0000", 10_000),
        ("10\u202f000", 10_000),
        (r"10\,000", 10_000),
        ("10'000", 10_000),
        ("10\u2019000", 10_000),
        ("1,00,000", 100_000),
        ("12,34,567.5", Fraction("1234567.5")),
        ("1 234 567.25", Fraction("1234567.25")),
        ("10_000", 10_000),
        ("5 12", 12),
        ("negative 5", -5),
        ("The answer is negative $5", -5),
        ("minus 5", -5),
        ("10 minus 5 equals 5", 5),
        (r"\fbox{18} step 2", 18),
        (r"\boxed{18} and {2", 18),
        (r"\boxed{\textbf{18}}", 18),
        (r"\boxed{\boxed{18}} step 2", 18),
        (r"\boxed{x = 5}", 5),
        (r"\(18\)", 18),
        ("$18$", 18),
        ("- 5", -5),
        ("x_2 = 7", 7),
        ("The answer is 5 km/h.", 5),
        ("60 km/h", 60),
        ("a 5-year-old", 5),
        ("$10\u2013$20", 20),
        ("(-5)", -5),
        ("No.5", 5),
        ("Rs.500", 500),
        ("USD500", 500),
        ("US$500", 500),
        ("(2)(3) = 6", 6),
        ("approx. 5 % of it", 5),
        (r"50\%", 50),
        ("the answer is `5` + `3` = `8`", 8),
        ("The **answer** is **12**, not 13", 12),
    ],
)
def test_the_final_number_of_a_text(text: str, value: Any) -> None:
    found = final_number(text)
    assert found is not None and found.value == value


@pytest.mark.parametrize("text", ["", "none", "####", "#### none", "$", "-", ",", "1/0", "9" * 100, "1e999999999"])
def test_a_text_without_a_number_has_none(text: str) -> None:
    assert final_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "12,34",
        "1,2,3",
        "1,234,56",
        "1.234.567",
        "1.234,56",
        "10'00",
        "3.2.1",
        "2024-05-06",
        "05/06/2024",
        "12:30",
        "3:4",
        "2 + 3",
        "#### 2+3",
        "the answer is 2 * 3",
        "12 = 3 * 4",
        "10 - 5",
        "10 -5",
        "n + 5",
        "2(3+4)",
        "the answer is sqrt(49)",
        "v1.2",
        "0x1F",
        "5a3",
        "3x",
        "COVID19",
        "B12",
        r"\boxed{3\sqrt{2}}",
        r"\boxed{\sqrt{2}}",
        r"\boxed{2\pi}",
        r"\boxed{2 \cdot \pi}",
        r"\boxed{\frac{\sqrt{3}}{2}}",
        r"\boxed{\frac{1}{0}}",
        r"\boxed{(3,4)}",
        r"\boxed{}",
        r"\boxed{10^x}",
        "10^999",
        "0^-1",
        "#### 1/0 or 4",
        "It is 4. No, it is 12,34",
    ],
)
def test_a_number_that_is_not_understood_whole_is_none(text: str) -> None:
    assert final_number(text) is None


@given(st.integers(-(10**15), 10**15))
def test_an_integer_is_read_back_however_it_is_grouped(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"#### {value:,}", f"It is {value:,}.", f"the answer is ${value:,} a week"):
        found = final_number(text)
        assert found is not None and found.value == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_decimal_is_read_back(value: Any) -> None:
    found = final_number(f"The answer is {value:,}.")
    assert found is not None and found.value == Fraction(value)


@given(st.text(max_size=80) | st.text(alphabet="0123456789,./-+$%eE# {}\\boxedfrac", max_size=80))
def test_any_text_has_a_number_or_none(text: str) -> None:
    found = final_number(text)
    assert found is None or isinstance(found.value, Fraction)


@pytest.mark.parametrize("shape", NASTY)
def test_twice_as_long_a_text_takes_no_more_than_twice_the_steps_to_read_its_numbers(shape: str) -> None:
    texts = [shape * (length // len(shape)) for length in (1_000, 2_000)]
    once, twice = (counted_steps(partial(tokens_of, text), "zhub.graders") for text in texts)
    assert twice <= 2.2 * once + 100


def test_of_a_long_answer_only_what_stands_near_its_end_is_read_for_numbers() -> None:
    for shape in NASTY:
        final_number(shape * (10**6 // len(shape)))
    assert final_number("7 " + "x " * MAX_READ_CHARACTERS) is None


def numeric(**more: Any) -> NumericGrader:
    return NumericGrader(type="numeric", name="n", reference="{{item.answer}}", **more)


@pytest.mark.parametrize(
    ("answer", "wanted", "reward"),
    [
        ("70,000", "70000", 1),
        ("70,000", "0", 0),
        ("70,000", "70", 0),
        ("5", "-5", 0),
        ("-5", "-5", 1),
        ("0.75", "3/4", 1),
        ("0.3333", "1/3", 0),
        ("50%", "50", 1),
        ("50%", "0.5", 1),
        ("50 percent", "50%", 1),
        ("0.5", "50%", 1),
        ("50", "0.5", 0),
        ("0.1", 0.1, 1),
        ("3", 3, 1),
    ],
)
def test_numbers_are_compared_by_value(answer: str, wanted: object, reward: float) -> None:
    assert grade(numeric(), answer, {"answer": wanted}) == reward


@pytest.mark.parametrize(
    ("tolerance", "reward"), [({}, 0), ({"abs_tol": 1}, 1), ({"abs_tol": 0.9}, 0), ({"rel_tol": 0.01}, 1)]
)
def test_a_tolerance_forgives(tolerance: dict[str, float], reward: float) -> None:
    assert grade(numeric(**tolerance), "101", {"answer": "100"}) == reward


def test_an_answer_without_a_number_is_wrong_and_not_parsed() -> None:
    (found,) = grade_all(numeric(), [Sample("I do not know", {"answer": "0"})], GradingTools())
    assert (found.reward, found.parsed) == (0.0, False)


def test_a_reference_without_a_number_is_an_error_of_the_row() -> None:
    with pytest.raises(RewardError, match="line 3: the reference 'many' holds no number"):
        grade_all(numeric(), [Sample("5", {"answer": "many"}, 3)], GradingTools())


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_of_gsm8k_is_its_own_number(split: str) -> None:
    path = DATA / f"gsm8k-{split}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    for line in path.read_text().splitlines():
        answer = json.loads(line)["answer"]
        found = final_number(answer)
        assert found is not None and found.value == Fraction(answer.rpartition("####")[2].strip().replace(",", ""))
