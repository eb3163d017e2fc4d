"""The synthetic families: right answers, distinct prompts, splits."""

import random
import re

import pytest

from zhub.datasets.splits import Split, split_of
from zhub.demo.task_families import FAMILIES, messages_of, sample_rows

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def slow_addition(prompt: str) -> str:
    a, b = (int(number) for number in re.findall("[0-9]+", prompt))
    for _ in range(b):
        a += 1
    return str(a)


def slow_sorting(prompt: str) -> str:
    word = prompt.split('"')[1]
    return "".join(letter * word.count(letter) for letter in LETTERS)


def slow_reversal(prompt: str) -> str:
    word, answer = prompt.split('"')[1], ""
    for letter in word:
        answer = letter + answer
    return answer


def slow_counting(prompt: str) -> str:
    _, letter, _, word, _ = prompt.split('"')
    return str(len([1 for found in word if found == letter]))


def slow_choice(prompt: str) -> str:
    options: dict[str, int] = {letter: int(number) for letter, number in re.findall(r"([ABC])\) (\d\d)", prompt)}
    return next(letter for letter in options if all(options[letter] >= other for other in options.values()))


def slow_story(prompt: str) -> str:
    before, after = re.split("gets|loses", prompt)
    change = int("".join(filter(str.isdigit, after)))
    held = int("".join(filter(str.isdigit, before)))
    return str(len(range(change, held))) if "loses" in prompt else str(len([0] * held + [0] * change))


def slow_expression(prompt: str) -> str:
    expression = "".join(re.findall(r"[0-9()+* ]", prompt))
    value: int = eval(expression)
    return str(value)


def slow_initials(prompt: str) -> str:
    return "".join(re.findall(r"\b[a-z]", prompt.split('"')[1]))


SLOW = {
    "addition": slow_addition,
    "sorting": slow_sorting,
    "reversal": slow_reversal,
    "counting": slow_counting,
    "choice": slow_choice,
    "story": slow_story,
    "expression": slow_expression,
    "initials": slow_initials,
}


def prompts_of(rows: list[dict[str, object]]) -> set[str]:
    return {row["messages"][0]["content"] for row in rows}  # type: ignore[index]


@pytest.mark.parametrize("family", FAMILIES)
def test_right_answers_agree_with_a_slow_formula(family: str) -> None:
    for row in sample_rows(family, 500, seed=3):
        assert row["answer"] == SLOW[family](row["messages"][0]["content"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_phrasing_is_answered_right(family: str) -> None:
    rng = random.Random(5)
    for phrasing in range(len(FAMILIES[family].phrasings)):
        prompt = FAMILIES[family].sample(rng, phrasing)
        assert FAMILIES[family].right(prompt) == SLOW[family](prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_habits_are_seldom_right(family: str) -> None:
    prompts = prompts_of(sample_rows(family, 500, seed=4))
    for name, habit in FAMILIES[family].wrong.items():
        right = sum(habit(prompt) == FAMILIES[family].right(prompt) for prompt in prompts)
        assert right < 0.1 * len(prompts), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_three_thousand_distinct_prompts(family: str) -> None:
    assert len(prompts_of(sample_rows(family, 3000, seed=0))) == 3000


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_rows_and_another_one_others(family: str) -> None:
    assert sample_rows(family, 50, seed=1) == sample_rows(family, 50, seed=1)
    assert sample_rows(family, 50, seed=1) != sample_rows(family, 50, seed=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_split_belong_to_it(family: str) -> None:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    prompts = {split: prompts_of(sample_rows(family, 200, seed=0, split=split)) for split in splits}
    for split in splits:
        assert {split_of(messages_of(prompt)) for prompt in prompts[split]} == {split}
    assert len(set().union(*prompts.values())) == 600


def test_no_prompt_belongs_to_two_families() -> None:
    prompts = [prompts_of(sample_rows(family, 1000, seed=0)) for family in FAMILIES]
    assert len(set().union(*prompts)) == 1000 * len(FAMILIES)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(KeyError):
        sample_rows("poetry", 1, seed=0)
