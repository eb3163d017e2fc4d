"""One evaluation: a model on the rows of a file, greedily and, where asked, by pass@k.

Knows no database, no object store, no Ray; see ``zhub.evaluation.evaluations`` for what becomes of the result.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zhub.datasets.rows import unique_rows
from zhub.evaluation.statistics import pass_at_k
from zhub.graders import Grade
from zhub.specs import EvaluateSpec
from zhub_workers.compute.group import Member
from zhub_workers.compute.requests import Generate
from zhub_workers.evaluation.grading import EncodedRow, Grading, encode_rows
from zhub_workers.model.adapters import Values

ROWS_FILE = "rows.jsonl"
ANSWERS_AT_ONCE = 1024  # between two reports of progress
PASSED = 1 - 1e-6  # a sample passes with the full reward; sums of weights may round just below it

OnEvent = Callable[[str, str, dict[str, Any] | None], None]


@dataclass(frozen=True)
class Answer:
    """What was answered to a row, and by which experts where that was chosen for the row."""

    text: str
    experts: Sequence[str] | None = None


class Answering(Protocol):
    """Answers rows, one answer to each: greedily, or at a temperature with a seed for each."""

    def __call__(
        self, rows: Sequence[EncodedRow], temperature: float = 0.0, seeds: Sequence[int] | None = None
    ) -> list[Answer]: ...


def following(member: Member, values: Values | None, max_new_tokens: int) -> Answering:
    """The answers of the model that follows ``values``, None for the base."""

    def answers(
        rows: Sequence[EncodedRow], temperature: float = 0.0, seeds: Sequence[int] | None = None
    ) -> list[Answer]:
        request = Generate(values, [row.prompt for row in rows], max_new_tokens, temperature, seeds)
        return [Answer(completion.text) for completion in member.run(request)]

    return answers


def run_evaluation(
    spec: EvaluateSpec,
    member: Member,
    answering: Answering,
    grading: Grading,
    rows_path: Path,
    directory: Path,
    *,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Measure what ``answering`` answers; leave ``rows.jsonl`` in ``directory``.

    Returns ``rewards`` and ``parsed`` of the greedy answers, one for each distinct row in the file's order, and
    ``pass_at_k``, None where nothing is sampled. A row's line in ``rows.jsonl`` has ``line, prompt, answer, reward,
    parsed``, and ``experts`` where these are chosen row by row. The same spec and file give the same result on one
    machine's CPU.

    Raises:
        TrainingError: a row that cannot be rendered or answered, by its line; a grader that failed.
        Stopped: the member should stop.
    """
    with rows_path.open("rb") as file:
        rows = encode_rows(member.base, unique_rows(file), with_target=False, should_stop=member.should_stop)
    answers: list[Answer] = []
    grades: list[Grade] = []
    for part in _parts(rows):
        answers += answering(part)
        grades += grading([answer.text for answer in answers[len(grades) :]], part)
        _report(on_event, "Answered", len(grades), len(rows))
    with (directory / ROWS_FILE).open("w", encoding="utf-8") as file:
        for row, answer, grade in zip(rows, answers, grades, strict=True):
            shown = {"line": row.row.line, "prompt": row.row.prompt, "answer": answer.text}
            shown |= {} if answer.experts is None else {"experts": list(answer.experts)}
            # Escaped: half of a surrogate pair, which a model may well write, is no UTF-8.
            file.write(json.dumps(shown | {"reward": grade.reward, "parsed": grade.parsed}) + "\n")
    return {
        "rewards": [grade.reward for grade in grades],
        "parsed": [grade.parsed for grade in grades],
        "pass_at_k": _pass_at_k(spec, answering, grading, rows, on_event) if spec.n else None,
    }


def _pass_at_k(
    spec: EvaluateSpec,
    answering: Answering,
    grading: Grading,
    rows: Sequence[EncodedRow],
    on_event: OnEvent,
) -> float:
    """The mean over rows of the unbiased estimate of pass@k from ``n`` samples each."""
    samples = [row for row in rows for _ in range(spec.n)]
    generator = random.Random(spec.seed)
    passed: list[bool] = []
    for part in _parts(samples):
        seeds = [generator.getrandbits(62) for _ in part]
        texts = [answer.text for answer in answering(part, spec.temperature, seeds)]
        passed += [grade.reward >= PASSED for grade in grading(texts, part)]
        _report(on_event, "Sampled", len(passed), len(samples))
    counts = [sum(passed[start : start + spec.n]) for start in range(0, len(passed), spec.n)]
    return sum(pass_at_k(spec.n, count, spec.k) for count in counts) / len(rows)


def _parts(rows: Sequence[EncodedRow]) -> list[Sequence[EncodedRow]]:
    return [rows[start : start + ANSWERS_AT_ONCE] for start in range(0, len(rows), ANSWERS_AT_ONCE)]


def _report(on_event: OnEvent, what: str, done: int, total: int) -> None:
    on_event("info", f"{what} {done:,} of {total:,}.", {"type": "progress", "done": done, "total": total})
