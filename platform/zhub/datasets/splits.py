"""Which split a prompt belongs to: train, validation or test, by a hash of its text."""

from collections.abc import Iterable
from typing import Literal

from zhub.datasets.rows import Row, value_digest

Split = Literal["train", "validation", "test"]


def split_of(prompt: list[dict[str, str]]) -> Split:
    """Return the split that a prompt belongs to: 10 % test, 10 % validation, by a hash of its text.

    The same prompt falls in the same split in every file and every version of it, so a row that was
    once held out is never trained on later.
    """
    position = prompt_position(prompt)
    return "test" if position < 0.1 else "validation" if position < 0.2 else "train"


def prompt_position(prompt: list[dict[str, str]]) -> float:
    """Return a number in [0, 1) that depends on nothing but the prompt's messages."""
    return int.from_bytes(value_digest(prompt)[:8], "big") / 2**64


def split_rows(rows: Iterable[Row]) -> dict[Split, list[Row]]:
    """Sort rows into splits by ``split_of``; no prompt is ever in two of them.

    A small dataset whose test or validation split would come out empty gives it the prompt that is
    nearest to the threshold instead, so that every expert is measured on something it never saw.
    """
    rows = list(rows)
    splits: dict[Split, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[split_of(row.prompt)].append(row)
    for name in ("test", "validation"):
        if not splits[name] and splits["train"]:
            nearest = min(prompt_position(row.prompt) for row in splits["train"])
            moved = [row for row in splits["train"] if prompt_position(row.prompt) == nearest]
            splits[name] = moved
            splits["train"] = [row for row in splits["train"] if prompt_position(row.prompt) != nearest]
    return splits
