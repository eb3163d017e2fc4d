"""Following a job: a live view on a terminal, its events line by line elsewhere."""

from collections.abc import Sequence

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zhub.cli.commands_for_routes import with_commands
from zhub.cli.exits import INTERRUPTED
from zhub.cli.output import moment, note, percent, sparkline, status, stderr
from zhub.client import Client
from zhub.client.training_curve import TrainingCurve
from zhub.client.transport import is_transient
from zhub.client.wire.training import FineTuningJob, JobEvent
from zhub.errors import ApiError, UnavailableError

EVENTS_SHOWN = 3


def watch(client: Client, job_id: str) -> FineTuningJob:
    """Show a job until it has ended, on standard error. Ctrl-C stops the display and leaves the job running."""
    try:
        return _watch_live(client, job_id) if stderr().is_terminal else _watch_lines(client, job_id)
    except KeyboardInterrupt:
        note(f"\nDetached; the job continues. To follow it again:\n  zhub jobs watch {job_id}")
        raise typer.Exit(INTERRUPTED) from None
    except (UnavailableError, ApiError) as exc:
        if not is_transient(exc):
            raise
        raise UnavailableError(
            f"{exc} The job is kept, and goes on once zhub runs again. To follow it then: `zhub jobs watch {job_id}`"
        ) from exc


def event_line(event: JobEvent) -> str:
    level = "" if event.level == "info" else f"{event.level}: "
    return f"{moment(event.created_at)}  {level}{with_commands(event.message)}"


def _watch_lines(client: Client, job_id: str) -> FineTuningJob:
    for job, new in client.jobs.follow(job_id):
        for event in new:
            note(event_line(event))
        last = job
    return last


def _watch_live(client: Client, job_id: str) -> FineTuningJob:
    curve, messages = TrainingCurve(), list[JobEvent]()
    with Live(console=stderr(), refresh_per_second=8) as live:
        for job, new in client.jobs.follow(job_id):
            curve.add(new)
            messages += [event for event in new if event.type == "message"]
            live.update(job_view(job, curve, messages[-EVENTS_SHOWN:]))
            last = job
    return last


def job_view(job: FineTuningJob, curve: TrainingCurve, messages: Sequence[JobEvent]) -> RenderableType:
    """One job in a few lines: its step, its reward and accuracy so far, its newest messages."""
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=job.steps, completed=curve.step, width=40)
    grid.add_row(Text("step", "bold"), f"{curve.step} of {job.steps}", bar)
    for name, values in (("reward", curve.rewards), ("validation", curve.accuracies)):
        if values:
            change = "" if len(values) == 1 else f" (began at {percent(values[0])})"
            grid.add_row(Text(name, "bold"), f"{percent(values[-1])}{change}", Text(sparkline(values), "cyan"))
    head = Text.assemble((job.id, "bold"), "  ", status(job.status))
    return Group(head, grid, *(Text(event_line(event), "dim", no_wrap=True, overflow="ellipsis") for event in messages))
