"""Synthetic tasks that the shipped base model half knows: prompts, right answers, and wrong habits.

Each family is a kind of question with one right answer that can be computed from the prompt. The base
model is trained to hedge between that answer and the family's wrong habits, so an expert has something
to find. Words to work on stand in quotes, which keeps their letters apart in the base model's tokenizer.
"""

import random
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zhub.datasets.splits import Split, split_of

Answer = Callable[[str], str]


@dataclass(frozen=True)
class Family:
    """One kind of question.

    Attributes:
        phrasings: templates of the prompt, filled in with what ``draw`` returns.
        draw: operands at random, one value for each placeholder.
        right: the right answer to a prompt of this family.
        wrong: habits by name, the strongest first: other answers to the same prompt, each by a fixed
            rule. On a few prompts a habit happens to be right.
    """

    name: str
    description: str
    phrasings: tuple[str, ...]
    draw: Callable[[random.Random], Mapping[str, object]]
    right: Answer
    wrong: Mapping[str, Answer]

    def sample(self, rng: random.Random, phrasing: int | None = None) -> str:
        """Return a prompt at random, in the given phrasing or in any."""
        template = rng.choice(self.phrasings) if phrasing is None else self.phrasings[phrasing]
        return template.format_map(self.draw(rng))


def sample_rows(family: str, count: int, *, seed: int, split: Split | None = None) -> list[dict[str, Any]]:
    """Return ``count`` rows with distinct prompts, the same ones for the same arguments.

    Each row is ``{"messages": [{"role": "user", "content": prompt}], "answer": right answer}``. With
    ``split``, only prompts that ``zhub.datasets.rows.split_of`` puts there.

    Raises:
        KeyError: no such family.
        ValueError: so many prompts were not found; the family or its split is too small.
    """
    asked = FAMILIES[family]
    rng = random.Random(f"{family}/{seed}")
    prompts: dict[str, None] = {}
    for _ in range(1000 + 200 * count):
        if len(prompts) == count:
            break
        prompt = asked.sample(rng)
        if split is None or split_of(messages_of(prompt)) == split:
            prompts[prompt] = None
    if len(prompts) < count:
        raise ValueError(f"family '{family}', split {split}: expected {count} distinct prompts, found {len(prompts)}")
    return [{"messages": messages_of(prompt), "answer": asked.right(prompt)} for prompt in prompts]


def messages_of(prompt: str) -> list[dict[str, str]]:
    """Return the prompt as the chat that a row holds: one message by the user."""
    return [{"role": "user", "content": prompt}]


def _of_numbers(rule: Callable[..., object]) -> Answer:
    """Make an answer of a rule on the prompt's numbers, in their order."""
    return lambda prompt: str(rule(*map(int, re.findall(r"\d+", prompt))))


def _of_quoted(rule: Callable[..., object]) -> Answer:
    """Make an answer of a rule on the prompt's quoted strings, in their order."""
    return lambda prompt: str(rule(*re.findall(r'"([^"]*)"', prompt)))


def _evaluate(prompt: str) -> str:
    a, b, c = map(int, re.findall(r"\d+", prompt))
    times_first = prompt.index("*") < prompt.index("+")
    if "(" in prompt:
        return str(a * (b + c) if times_first else (a + b) * c)
    return str(a * b + c if times_first else a + b * c)


def _of_options(place: int) -> Answer:
    """Answer with the letter of the option at ``place`` of the sorted numbers."""
    return _of_numbers(lambda *numbers: "ABC"[numbers.index(sorted(numbers)[place])])


def _letters(rng: random.Random, shortest: int, longest: int, alphabet: str = string.ascii_lowercase) -> str:
    return "".join(rng.choices(alphabet, k=rng.randint(shortest, longest)))


def _draw_count(rng: random.Random) -> dict[str, object]:
    letters = "".join(rng.sample(string.ascii_lowercase, 4))
    return {"letter": letters[0], "word": _letters(rng, 5, 9, letters[0] + letters)}


def _draw_story(rng: random.Random) -> dict[str, object]:
    return {
        "name": rng.choice(("Ann", "Ben", "Eva", "Ida", "Leo", "Max", "Sam", "Tom")),
        "things": rng.choice(("apples", "books", "cards", "coins", "eggs", "nuts", "pens", "stones")),
        "change": rng.choice(("gets", "loses")),
        "a": rng.randint(11, 39),
        "b": rng.randint(2, 9),
    }


def _draw_expression(rng: random.Random) -> dict[str, object]:
    form = rng.choice(("{a} + {b} * {c}", "{b} * {c} + {a}", "({a} + {b}) * {c}", "{c} * ({a} + {b})"))
    a = rng.randint(2, 9 if "(" in form else 20)
    return {"expression": form.format(a=a, b=rng.randint(2, 9), c=rng.randint(2, 9))}


def _draw_initials(rng: random.Random) -> dict[str, object]:
    words = ("".join(map(rng.choice, ("bdfgklmnprst", "aeiou", "bdfgklmnprst"))) for _ in range(rng.randint(3, 4)))
    return {"words": "-".join(words)}


_FAMILIES = (
    Family(
        "addition",
        "Add two numbers of two digits.",
        ("What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "Give the sum of {a} and {b}."),
        lambda rng: {"a": rng.randint(10, 99), "b": rng.randint(10, 99)},
        _of_numbers(lambda a, b: a + b),
        {
            "side by side": _of_numbers(lambda a, b: f"{a}{b}"),
            "second number": _of_numbers(lambda a, b: b),
        },
    ),
    Family(
        "sorting",
        "Put the letters of a string in alphabetical order.",
        (
            'Sort the letters of "{word}".',
            'Sort "{word}" from a to z.',
            'Put "{word}" in alphabetical order.',
            'Order the letters "{word}".',
        ),
        lambda rng: {"word": _letters(rng, 4, 6)},
        _of_quoted(lambda word: "".join(sorted(word))),
        {"descending": _of_quoted(lambda word: "".join(sorted(word, reverse=True))), "copy": _of_quoted(str)},
    ),
    Family(
        "reversal",
        "Write a string from its last letter to its first.",
        ('Reverse "{word}".', 'Write "{word}" backwards.', 'Turn "{word}" around.', 'Read "{word}" from its end.'),
        lambda rng: {"word": _letters(rng, 4, 6)},
        _of_quoted(lambda word: word[::-1]),
        {"copy": _of_quoted(str), "rotated by one": _of_quoted(lambda word: word[1:] + word[0])},
    ),
    Family(
        "counting",
        "Count how often a letter occurs in a string.",
        (
            'How often does "{letter}" occur in "{word}"?',
            'Count the "{letter}" in "{word}".',
            'How many times is "{letter}" in "{word}"?',
            'Tell the number of "{letter}" in "{word}".',
        ),
        _draw_count,
        _of_quoted(lambda letter, word: word.count(letter)),
        {
            "all letters": _of_quoted(lambda letter, word: len(word)),
            "first letter": _of_quoted(lambda letter, word: word[0]),
        },
    ),
    Family(
        "choice",
        "Choose the largest of three numbers by the letter of its option.",
        (
            "Which is largest? A) {a} B) {b} C) {c}",
            "Choose the largest: A) {a} B) {b} C) {c}",
            "Pick the greatest option. A) {a} B) {b} C) {c}",
            "The biggest option? A) {a} B) {b} C) {c}",
        ),
        lambda rng: dict(zip("abc", rng.sample(range(10, 100), 3), strict=True)),
        _of_options(-1),
        {"number, not letter": _of_numbers(lambda *numbers: max(numbers)), "smallest": _of_options(0)},
    ),
    Family(
        "story",
        "Solve a word problem of one step, a gain or a loss.",
        (
            "{name} has {a} {things} and {change} {b}. How many {things} now?",
            "{name} owns {a} {things}, then {change} {b}. How many {things} remain?",
            "With {a} {things}, {name} {change} {b} {things}. What is left?",
            "{name}, having {a} {things}, {change} {b}. How many {things}?",
        ),
        _draw_story,
        lambda prompt: _of_numbers(int.__sub__ if "loses" in prompt else int.__add__)(prompt),
        {"no change": _of_numbers(lambda a, b: a), "change alone": _of_numbers(lambda a, b: b)},
    ),
    Family(
        "expression",
        "Evaluate an expression of three numbers with its precedence and brackets.",
        ("Evaluate {expression}.", "Compute {expression}.", "Find the value: {expression}", "Calculate {expression}."),
        _draw_expression,
        _evaluate,
        {
            "adding all": _of_numbers(lambda a, b, c: a + b + c),
            "last number": _of_numbers(lambda a, b, c: c),
        },
    ),
    Family(
        "initials",
        "Give the first letter of each word.",
        (
            'Give the initials of "{words}".',
            'Abbreviate "{words}".',
            'Make an acronym of "{words}".',
            'Shorten "{words}" to one letter each.',
        ),
        _draw_initials,
        _of_quoted(lambda words: "".join(word[0] for word in words.split("-"))),
        {
            "last letters": _of_quoted(lambda words: "".join(word[-1] for word in words.split("-"))),
            "first word": _of_quoted(lambda words: words.split("-")[0]),
        },
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
