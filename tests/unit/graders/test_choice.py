"""Which option of a multiple-choice question a text chooses."""

from typing import Any

import pytest
from nasty_texts import NASTY

from zhub.errors import RewardError
from zhub.graders import MultipleChoiceGrader, grade
from zhub.graders.choice import read_choice


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("**B**", 1),
        (" B \n", 1),
        ("2", 1),
        ("The answer is B.", 1),
        ("The answer is (B) because A is wrong.", 1),
        ("The answer is A because it rains", 0),
        ("The correct answer is: **B**", 1),
        ("Answer: B", 1),
        ("A is tempting.\nAnswer: B", 1),
        ("The answer is A. No, the answer is B", 1),
        (r"So \boxed{B}", 1),
        (r"\boxed{\text{B}}", 1),
        ("B) because it rains", 1),
        ("It rains, so\n\nB", 1),
        ("The correct option is D", 3),
        (r"\boxed{\textbf{(B)}}", 1),
        (r"So it is $\boxed{\textbf{(B)}}$.", 1),
        (r"\boxed{\mathrm{B}}", 1),
        (r"The answer is $\mathrm{B}$.", 1),
        ("answer is b", 1),
        ("The answer is b because it rains", 1),
        ("the answer is (b).", 1),
        ("answer: **b**", 1),
        ("answer is a\nThat is all.", 0),
        ("**Answer:** B", 1),
    ],
)
def test_the_option_that_a_text_chooses(text: str, place: int) -> None:
    assert read_choice(text, n_choices=4, base=1) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        "5",
        "0",
        "I do not know",
        "A or B",
        "Bananas",
        "A dog runs",
        "I think so",
        "The answer is Apple",
        "ABCD",
        "the answer is a dog",
        "the answer is b or c",
        "option b is wrong",
        r"\boxed{x}",
        "answer" + " " * 1000,
    ],
)
def test_what_chooses_nothing_is_no_letter(text: str) -> None:
    assert read_choice(text, n_choices=4, base=1) is None


def choice(**more: Any) -> MultipleChoiceGrader:
    return MultipleChoiceGrader(type="multiple_choice", name="c", reference="{{item.key}}", **more)


@pytest.mark.parametrize(
    ("answer", "key", "base", "reward"),
    [
        ("A", "A", 1, 1),
        ("A", "1", 1, 1),
        ("1", "A", 1, 1),
        ("A", "0", 0, 1),
        ("B", "1", 0, 1),
        ("A", 0, 0, 1),
        ("D", 4, 1, 1),
        ("A", "2", 1, 0),
        ("banana", "A", 1, 0),
        ("", "A", 1, 0),
    ],
)
def test_letters_and_numbers_name_the_same_options(answer: str, key: object, base: Any, reward: float) -> None:
    assert grade(choice(reference_base=base), answer, {"key": key}) == reward


@pytest.mark.parametrize("key", ["E", "0", "5", "x1", ""])
def test_a_key_that_names_no_option_is_an_error_of_the_row(key: str) -> None:
    with pytest.raises(RewardError, match="neither a letter from A to D nor a number from 1 to 4"):
        grade(choice(), "A", {"key": key})


def test_an_option_is_found_in_time_that_grows_with_the_length_of_the_answer() -> None:
    for shape in NASTY:
        read_choice(shape * (10**5 // len(shape)), n_choices=4, base=1)
    for nasty in (" ", "\n", "*", "(", "\\boxed{", "is ", ": "):
        read_choice("answer" + nasty * 10**6, n_choices=4, base=1)
        read_choice(f"answer is{nasty * 10**6}x", n_choices=4, base=1)
