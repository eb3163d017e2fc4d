"""``zhub demo``: how ``zhub.demo.walk`` looks on a terminal, and in a log."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zhub.cli.exits import ERROR, INTERRUPTED
from zhub.cli.output import duration, interval, note, p_value, percent, put, sparkline, status, stderr, table
from zhub.demo import walk as steps
from zhub.demo.plans import PLANS
from zhub.suggestions import did_you_mean

NOTE_WIDTH = 60


def demo(
    data_dir: Annotated[
        Path, typer.Option(help="Where its files go; the files of an earlier demo are removed.")
    ] = Path(".zhub-demo"),
    base: Annotated[
        str, typer.Option(help="zhub-tiny, which zhub ships, or smollm2, a real language model: it takes half an hour.")
    ] = "zhub-tiny",
) -> None:
    """Train experts for a few small tasks on this machine, measure them, and ask them questions. Takes minutes."""
    if base not in PLANS:
        raise typer.BadParameter(
            f"there is no demo with '{base}'.{did_you_mean(base, PLANS)} There is: {', '.join(PLANS)}",
            param_hint="--base",
        )
    started = time.monotonic()
    console = stderr()
    try:
        outcome = steps.run(data_dir, PLANS[base](), _Terminal(console) if console.is_terminal else _Lines())
    except KeyboardInterrupt:
        note(f"Interrupted; everything is stopped. The files are in {data_dir.absolute()}.")
        raise typer.Exit(INTERRUPTED) from None
    show_outcome(outcome)
    note(f"\nEverything is in {data_dir.absolute()}, until the next demo. It took {_elapsed(started)}.")
    if not outcome.convincing:
        points = 100 * outcome.plan.min_gain
        gained = ", ".join(outcome.gained) or "none"
        note(f"At least {outcome.plan.min_tasks} tasks should gain {points:.0f} points; these did: {gained}.")
        raise typer.Exit(ERROR)


def show_outcome(outcome: steps.Outcome) -> None:
    """The results on held-out rows, the versions, and the questions."""
    put()
    rows = [
        (
            course.task.name,
            interval(course.test.base),
            interval(course.test.expert),
            Text(f"{100 * course.gain:+.1f}", "green" if course.gain >= outcome.plan.min_gain else ""),
            p_value(course.test.p_value),
            str(course.test.expert.n),
        )
        for course in outcome.courses
    ]
    put(Text("Right answers on held-out rows, with 95 % intervals", "bold"))
    put(table(("TASK", "BASE", "EXPERT", "POINTS", "P", "ROWS"), rows, whole=6))
    put()
    versions = [
        (course.version.id, course.version.digest[:16], str(course.directory))
        for course in outcome.courses
        if course.version
    ]
    put(table(("VERSION", "DIGEST", "FILES"), versions, whole=2))
    for question in outcome.questions:
        put()
        _show_question(question)


def _show_question(question: steps.Question) -> None:
    put(Text.assemble((question.prompt, "bold"), f"  (expected: {question.expected})"), soft_wrap=True)
    rows = []
    for who, answer in question.answers.items():
        right = re.search(rf"\b{re.escape(question.expected)}\b", answer.text, re.IGNORECASE) is not None
        why = ""
        if who == "auto":
            chosen = ", ".join(f"{expert.weight:g} × {expert.name}" for expert in answer.experts)
            why = f"{chosen or answer.routing.base_model}: {answer.routing.reason}"
        rows.append((f"  {who}", Text(answer.text), Text("right", "green") if right else Text("wrong", "red"), why))
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*row)
    put(grid)


class _Terminal:
    """Spinners, and a table that is updated."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        started = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(title, total=None, note="")
            yield lambda text: bars.update(task, note=_short(text))
        self._console.print(Text.assemble(("✓ ", "green"), title, (f"  {_elapsed(started)}", "dim")))

    @contextmanager
    def training(self, courses: Sequence[steps.Course]) -> Iterator[Callable[[], None]]:
        started = time.monotonic()
        with Live(_training_table(courses), console=self._console, refresh_per_second=4) as live:
            yield lambda: live.update(_training_table(courses))
        self._console.print(Text.assemble(("✓ ", "green"), "Training", (f"  {_elapsed(started)}", "dim")))


class _Lines:
    """One line for each thing that happened."""

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        started = time.monotonic()
        note(f"{title} …")
        yield lambda _text: None
        note(f"  done after {_elapsed(started)}")

    @contextmanager
    def training(self, courses: Sequence[steps.Course]) -> Iterator[Callable[[], None]]:
        said: dict[str, str] = {}

        def say_changes() -> None:
            for course in courses:
                assert course.job is not None
                line = course.job.status
                if course.curve.accuracies:
                    accuracy = percent(course.curve.accuracies[-1])
                    line += f", step {course.curve.step} of {course.job.steps}, validation accuracy {accuracy}"
                # The step alone is no news; an evaluation or another state is.
                news = f"{course.job.status}{len(course.curve.accuracies)}"
                if said.get(course.task.name) != news:
                    said[course.task.name] = news
                    note(f"  {course.task.name}: {line}")

        note(f"Training {len(courses)} experts …")
        yield say_changes


def _training_table(courses: Sequence[steps.Course]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("TASK", "STATE", "STEP", "", "REWARD", "", "VALIDATION"):
        made.add_column(column, no_wrap=True)
    for course in courses:
        assert course.job is not None
        curve = course.curve
        first, last = (percent(curve.accuracies[0]), percent(curve.accuracies[-1])) if curve.accuracies else ("", "")
        made.add_row(
            course.task.name,
            status(course.job.status),
            f"{curve.step}/{course.job.steps}",
            ProgressBar(total=course.job.steps, completed=curve.step, width=12),
            percent(curve.rewards[-1]) if curve.rewards else "",
            Text(sparkline(curve.rewards, width=20), "cyan"),
            f"{first} → {last}" if len(curve.accuracies) > 1 else first,
        )
    return made


def _short(text: str) -> str:
    return text if len(text) <= NOTE_WIDTH else f"{text[: NOTE_WIDTH - 1]}…"


def _elapsed(started: float) -> str:
    return duration(time.monotonic() - started)
