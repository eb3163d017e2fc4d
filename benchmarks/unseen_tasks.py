"""Tasks that no expert of the shipped base was trained on: compositions of its families, and harder variants."""

import random
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from zhub.datasets.splits import Split, split_of
from zhub.demo.task_families import Family, messages_of

SHIPPED_LENGTHS = (4, 6)  # letters of the words that sorting and reversal have in the shipped families


def _word(shortest: int, longest: int) -> Callable[[random.Random], Mapping[str, object]]:
    return lambda rng: {"word": "".join(rng.choices(string.ascii_lowercase, k=rng.randint(shortest, longest)))}


def _words(rng: random.Random) -> Mapping[str, object]:
    parts = ("bdfgklmnprst", "aeiou", "bdfgklmnprst")
    return {"words": "-".join("".join(map(rng.choice, parts)) for _ in range(rng.randint(3, 4)))}


def _of_quoted(rule: Callable[[str], str]) -> Callable[[str], str]:
    return lambda prompt: rule(re.findall(r'"([^"]*)"', prompt)[0])


def _initials(words: str) -> str:
    return "".join(word[0] for word in words.split("-"))


def _task(
    name: str,
    description: str,
    phrasings: tuple[str, ...],
    draw: Callable[[random.Random], Mapping[str, object]],
    rule: Callable[[str], str],
) -> Family:
    return Family(name, description, phrasings, draw, rule, {})


SORT = ('Sort the letters of "{word}".', 'Sort "{word}" from a to z.', 'Order the letters "{word}".')
TURN = ('Reverse "{word}".', 'Write "{word}" backwards.', 'Turn "{word}" around.')


def _either(prompt: str) -> str:
    (word,) = re.findall(r'"([^"]*)"', prompt)
    return "".join(sorted(word)) if prompt in {phrasing.format(word=word) for phrasing in SORT} else word[::-1]


TASKS: dict[str, Family] = {
    task.name: task
    for task in (
        _task(
            "short sorting",
            "Sort strings of three letters, which are shorter than any that was trained on.",
            SORT,
            _word(3, 3),
            _of_quoted(lambda word: "".join(sorted(word))),
        ),
        _task("short reversal", "Reverse strings of three letters.", TURN, _word(3, 3), _of_quoted(lambda w: w[::-1])),
        _task(
            "either", "Sort or reverse strings of three letters, as the prompt says.", SORT + TURN, _word(3, 3), _either
        ),
        _task(
            "sorting in other words",
            "Sort strings as long as those that were trained on, asked for in words that were not.",
            ('Put the letters of "{word}" in order.', 'Arrange "{word}" alphabetically.'),
            _word(*SHIPPED_LENGTHS),
            _of_quoted(lambda word: "".join(sorted(word))),
        ),
        _task(
            "last letters",
            "Give the last letter of each word: initials, but for the end that is meant.",
            ('Give the last letters of "{words}".', 'Abbreviate "{words}" by its last letters.'),
            _words,
            _of_quoted(lambda words: "".join(word[-1] for word in words.split("-"))),
        ),
        _task(
            "initials sorted",
            "Give the first letters of words in the order of the alphabet: initials, then sorting.",
            ('Sort the initials of "{words}".', 'Give the initials of "{words}" in alphabetical order.'),
            _words,
            _of_quoted(lambda words: "".join(sorted(_initials(words)))),
        ),
        _task(
            "sorting backwards",
            "Sort a string and turn it around: sorting, then reversal.",
            (
                'Sort the letters of "{word}" and turn them around.',
                'Order the letters of "{word}", from last to first.',
            ),
            _word(*SHIPPED_LENGTHS),
            _of_quoted(lambda word: "".join(sorted(word, reverse=True))),
        ),
    )
}


def sample(task: Family, count: int, *, seed: int, split: Split | None = None) -> list[dict[str, Any]]:
    """``count`` rows with distinct prompts, as ``sample_rows`` of the shipped families gives them."""
    rng = random.Random(f"{task.name}/{seed}")
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompt = task.sample(rng)
        if split is None or split_of(messages_of(prompt)) == split:
            prompts[prompt] = None
    return [{"messages": messages_of(prompt), "answer": task.right(prompt)} for prompt in prompts]
