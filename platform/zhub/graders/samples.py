"""The input and the result of a grader: samples, grades, and the tools that some graders need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zhub.graders.types import ScoreModelGrader
from zhub.sandbox import Sandbox


@dataclass(frozen=True)
class Sample:
    """An answer and its row's columns. ``line`` is the row's line in its file, for messages; 0 where it is in none."""

    output_text: str
    item: Mapping[str, Any]
    line: int = 0

    @property
    def where(self) -> str:
        return f"line {self.line}: " if self.line else ""


@dataclass(frozen=True)
class Grade:
    """A finite reward. ``parsed`` is False where the answer could not be read, which counts as wrong.

    ``in_time`` is False where that was because grading it was given up.
    """

    reward: float
    parsed: bool = True
    detail: str | None = None
    in_time: bool = True


# Answers conversations as the grader's model, in their order.
Judge = Callable[[ScoreModelGrader, Sequence[list[dict[str, str]]]], list[str]]


@dataclass(frozen=True)
class GradingTools:
    """What a grader may need beyond the sample.

    A grader raises where the part that it needs is None. ``note`` gets, as a level and a line, what a program
    printed and on which answers it failed. Only the program's author may read that.
    """

    sandbox: Sandbox | None = None
    judge: Judge | None = None
    note: Callable[[str, str], None] = lambda _level, _line: None
