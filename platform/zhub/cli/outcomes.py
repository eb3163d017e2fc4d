"""``zhub experts answers``, and what ``zhub experts show`` has of it: answers before and after, and forgetting."""

import itertools
from collections.abc import Iterable
from typing import Annotated, Literal

import typer
from rich.text import Text

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import interval, note, p_value, put, show_json, status, table
from zhub.client import Client
from zhub.client.wire.experts import AnswerPairRecord, ExpertVersion, GeneralRecord
from zhub.errors import ApiError, UnavailableError

EXAMPLES = 3  # of what was lost and of what was gained, beside a version
PROMPT_CHARACTERS = 70
ANSWER_CHARACTERS = 40


def answers(
    name: Annotated[str, typer.Argument(help="A version (project.expert@v1).")],
    change: Annotated[
        Literal["lost", "gained", "same"] | None, typer.Option(help="Only those that the expert lost, or gained.")
    ] = None,
    general: Annotated[
        bool, typer.Option("--general", help="Those to the general suite, not to the test rows.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what base and expert answered to the same prompts: what was lost first, then what was gained."""
    with connect(data_dir) as client:
        version = client.experts.get(name)
        wanted = (
            pair
            for pair in (client.experts.answers(version.id) if version.has_answers else ())
            if pair.suite == ("general" if general else "test") and change in (None, pair.change)
        )
        pairs = list(itertools.islice(wanted, limit))
    if as_json:
        return show_json(pairs)
    if not version.has_answers:
        return note(f"{version.id} was trained by an earlier release, which kept no answers.")
    if general and version.general is None:
        return note(f"{version.id} was not asked the general suite, or its base knows too little of it.")
    show_answers(pairs)


def examples(client: Client, version: ExpertVersion) -> list[AnswerPairRecord]:
    """A few of the test rows that the version lost and gained."""
    if not version.has_answers:
        return []
    chosen: list[AnswerPairRecord] = []
    try:
        for pair in client.experts.answers(version.id):
            if pair.suite != "test" or pair.change == "same":
                break
            if sum(other.change == pair.change for other in chosen) < EXAMPLES:
                chosen.append(pair)
    except (ApiError, UnavailableError) as exc:
        note(f"What it answered cannot be shown now: {exc}")
    return chosen


def show_answers(pairs: Iterable[AnswerPairRecord]) -> None:
    rows = [
        (
            status(pair.change),
            pair.category or str(pair.line),
            _short(pair.prompt[-1]["content"], PROMPT_CHARACTERS),
            "-" if pair.expected is None else _short(pair.expected, ANSWER_CHARACTERS),
            _graded(pair.base_answer, pair.base_reward),
            _graded(pair.expert_answer, pair.expert_reward),
        )
        for pair in pairs
    ]
    put(table(("CHANGE", "LINE", "PROMPT", "EXPECTED", "BASE", "EXPERT"), rows, whole=2))


def show_general(general: GeneralRecord) -> None:
    rows = [
        (
            part.name,
            str(part.base.n),
            interval(part.base),
            interval(part.expert),
            p_value(part.p_value),
            status(part.verdict),
        )
        for part in (general, *general.categories)
    ]
    put(table(("BESIDE ITS TASK", "N", "BASE [95 %]", "EXPERT [95 %]", "P", "VERDICT"), rows, whole=5))
    put(Text(general.sentence), soft_wrap=True)


def _graded(answer: str | None, reward: float) -> Text:
    """An answer with its reward, where that says more than right or wrong."""
    text = "-" if answer is None else _short(answer, ANSWER_CHARACTERS)
    shown = text if reward in (0.0, 1.0) else f"{text} ({reward:.2f})"
    return Text(shown, "green" if reward == 1 else "")


def _short(text: str, most: int) -> str:
    """On one line, without control characters, which must not reach the terminal."""
    words = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    return words if len(words) <= most else f"{words[: most - 1]}…"
