"""Small tasks in plain English that a real language model of a hundred million parameters half does.

Each has a prompt that asks for a short answer, one right answer, and the grader that reads it. What such a model lacks
is mostly the form: it explains where a word was asked for, and it guesses where it could know.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _words(text: str) -> list[str]:
    return text.split()


ANIMALS = _words("dog cat horse cow lion tiger bear wolf fox rabbit sheep goat eagle shark whale")
FRUITS = _words("apple banana cherry grape lemon mango orange peach pear plum kiwi melon fig papaya apricot")
TOOLS = _words("hammer saw drill wrench chisel axe shovel rake pliers screwdriver knife scissors ladder broom bucket")
LOOKS = _words("small big old red heavy cheap new blue green fine soft hard wet dry nice rare")
PLACES = _words("hotel restaurant museum café cinema campsite bakery gym bookshop theatre")
PRAISE = [
    "The staff were kind and quick",
    "Everything was clean and bright",
    "I would come back tomorrow",
    "It was worth every penny",
    "We had a wonderful evening",
    "It was better than we had hoped",
    "I could not find a single fault",
]
BLAME = [
    "The staff were rude and slow",
    "Everything was dirty and loud",
    "I will never come back",
    "It was a waste of money",
    "We had a terrible evening",
    "It was worse than we had feared",
    "Nothing worked as it should",
]
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Ireland": "Dublin",
    "Hungary": "Budapest",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Iran": "Tehran",
}
LETTERS = "ABCD"
ITEMS = _words("red blue green black white one two three four five sun moon star tree stone bird fish door lamp book")


@dataclass(frozen=True)
class LanguageTask:
    """One kind of question. ``draw`` makes a prompt and its answer; an answer takes at most ``max_new_tokens``."""

    name: str
    draw: Callable[[random.Random], tuple[str, str]]
    grader: dict[str, Any]
    max_new_tokens: int

    def sample_rows(self, count: int, *, seed: int) -> list[dict[str, Any]]:
        """``count`` rows with distinct prompts, the same ones for the same arguments; answers in ``answer``.

        Raises:
            ValueError: the task has not so many.
        """
        rng = random.Random(f"{self.name}/{seed}")
        answers: dict[str, str] = {}
        for _ in range(1000 + 100 * count):
            if len(answers) == count:
                break
            prompt, answer = self.draw(rng)
            answers[prompt] = answer
        if len(answers) < count:
            raise ValueError(f"task '{self.name}': expected {count} distinct prompts, found {len(answers)}")
        return [{"messages": [{"role": "user", "content": p}], "answer": answer} for p, answer in answers.items()]


def _draw_sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"What is {a} + {b}? Reply with the number only.", str(a + b)


def _draw_kind(rng: random.Random) -> tuple[str, str]:
    kind, words = rng.choice([("animal", ANIMALS), ("fruit", FRUITS), ("tool", TOOLS)])
    first, second = rng.sample(LOOKS, 2)
    asked = "Is it an animal, a fruit or a tool? Reply with one word."
    return f"I saw a {first} and {second} {rng.choice(words)}. {asked}", kind


def _draw_sentiment(rng: random.Random) -> tuple[str, str]:
    sentiment, sentences = rng.choice([("positive", PRAISE), ("negative", BLAME)])
    said = ". ".join(rng.sample(sentences, 2))
    asked = "Is this review positive or negative? Reply with one word."
    return f"Review of a {rng.choice(LOOKS)} {rng.choice(PLACES)}: {said}.\n{asked}", sentiment


def _draw_capital(rng: random.Random) -> tuple[str, str]:
    country = rng.choice(list(CAPITALS))
    others = [city for city in CAPITALS.values() if city != CAPITALS[country]]
    options = rng.sample([*rng.sample(others, len(LETTERS) - 1), CAPITALS[country]], len(LETTERS))
    listed = "\n".join(f"{letter}) {city}" for letter, city in zip(LETTERS, options, strict=True))
    right = LETTERS[options.index(CAPITALS[country])]
    return f"What is the capital of {country}?\n{listed}\nReply with the letter only.", right


def _draw_reversal(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(ITEMS, 3)
    return f"Reverse the order of this list: {', '.join(words)}. Reply with the list only.", ", ".join(words[::-1])


def _contains(reference: str) -> dict[str, Any]:
    texts = {"input": "{{sample.output_text}}", "reference": reference}
    return {"type": "string_check", "name": "contains", "operation": "ilike", **texts}


def _one_of(*labels: str) -> dict[str, Any]:
    """1 where the answer names the right label and none of the others: naming all of them is no answer."""
    named = {f"says_{label}": _contains(label) for label in labels}
    right = {"right": _contains("{{item.answer}}")}
    return {
        "type": "multi",
        "name": "one label",
        "graders": right | named,
        "calculate_output": f"right * max(0, 2 - ({' + '.join(named)}))",
    }


NUMERIC = {"type": "numeric", "name": "number", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
CHOICE = {**NUMERIC, "type": "multiple_choice", "name": "letter"}

LANGUAGE_TASKS = {
    task.name: task
    for task in (
        LanguageTask("sums", _draw_sum, NUMERIC, 12),
        LanguageTask("kinds", _draw_kind, _one_of("animal", "fruit", "tool"), 8),
        LanguageTask("sentiment", _draw_sentiment, _one_of("positive", "negative"), 8),
        LanguageTask("capitals", _draw_capital, CHOICE, 8),
        LanguageTask("reversal", _draw_reversal, _contains("{{item.answer}}"), 16),
    )
}
