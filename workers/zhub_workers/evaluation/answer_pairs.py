"""Answers of base and expert to the same prompts, side by side, and the file that keeps them with a version."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zhub.manifest import ANSWERS_FILE

MAX_CHARACTERS = 2000  # of each text in the file
SHOWN_CHARACTERS = 200  # of each text of an example in an event
EXAMPLES = 3  # of what was gained and of what was lost, in an event

Change = Literal["lost", "gained", "same"]
ORDER: tuple[Change, ...] = ("lost", "gained", "same")


@dataclass(frozen=True)
class AnswerPair:
    """``line`` is that of the row in its file, or of the question in its suite. ``expected`` is None where the grader
    compares with no text; the answers are None where only likelihoods were compared."""

    suite: Literal["test", "general"]
    line: int
    prompt: list[dict[str, str]]
    expected: str | None
    base_answer: str | None
    expert_answer: str | None
    base_reward: float
    expert_reward: float
    category: str | None = None

    @property
    def change(self) -> Change:
        if self.expert_reward == self.base_reward:
            return "same"
        return "gained" if self.expert_reward > self.base_reward else "lost"


def write_pairs(directory: Path, pairs: Iterable[AnswerPair]) -> Path:
    """Write a JSON object a line: of each suite what was lost first, the most first, then what was gained."""
    path = directory / ANSWERS_FILE
    with path.open("w", encoding="utf-8") as file:
        for pair in ordered(pairs):
            # Escaped: half of a surrogate pair, which a model may well write, is no UTF-8.
            file.write(json.dumps(_line(pair)) + "\n")
    return path


def ordered(pairs: Iterable[AnswerPair]) -> list[AnswerPair]:
    return sorted(
        pairs,
        key=lambda pair: (
            pair.suite != "test",
            ORDER.index(pair.change),
            -abs(pair.expert_reward - pair.base_reward),
            pair.line,
        ),
    )


def summary(pairs: Sequence[AnswerPair]) -> tuple[str, dict[str, Any]]:
    """A line for people and an event's data: how many rows gained and lost, with a few of each."""
    counts = Counter(pair.change for pair in pairs)
    examples = {
        change: [pair for pair in ordered(pairs) if pair.change == change][:EXAMPLES] for change in ("gained", "lost")
    }
    told = " ".join(f"{change.capitalize()}: {_told(listed[0])}." for change, listed in examples.items() if listed)
    line = f"{len(pairs)} test rows: {counts['gained']} gained, {counts['lost']} lost, {counts['same']} as before."
    shown = {change: [_example(pair) for pair in listed] for change, listed in examples.items()}
    data: dict[str, Any] = {"type": "answers", "examples": shown}
    data |= {change: counts[change] for change in ORDER}
    return f"{line} {told}".rstrip(), data


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _line(pair: AnswerPair) -> dict[str, Any]:
    line = {"change": pair.change} | vars(pair)
    line["prompt"] = [message | {"content": shortened(message["content"], MAX_CHARACTERS)} for message in pair.prompt]
    for name in ("expected", "base_answer", "expert_answer"):
        line[name] = None if line[name] is None else shortened(line[name], MAX_CHARACTERS)
    return line


def _example(pair: AnswerPair) -> dict[str, Any]:
    texts = {
        "prompt": pair.prompt[-1]["content"],
        "expected": pair.expected,
        "base_answer": pair.base_answer,
        "expert_answer": pair.expert_answer,
    }
    shown = {name: None if text is None else _storable(text, SHOWN_CHARACTERS) for name, text in texts.items()}
    return {"line": pair.line, **shown, "base_reward": pair.base_reward, "expert_reward": pair.expert_reward}


def _told(pair: AnswerPair) -> str:
    texts = (pair.prompt[-1]["content"], pair.base_answer, pair.expert_answer)
    prompt, before, after = (repr(_storable(" ".join((text or "").split()), 60)) for text in texts)
    return f"{prompt}: {before} → {after}" if pair.base_answer is not None else f"line {pair.line}, {prompt}"


def _storable(text: str, most: int) -> str:
    """The text as a database takes it: no NUL, no half of a surrogate pair."""
    return shortened(text.replace("\0", "\ufffd").encode(errors="replace").decode(), most)
