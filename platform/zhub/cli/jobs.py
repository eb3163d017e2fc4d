"""``zhub jobs``."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import JOB_FAILED
from zhub.cli.experts import show_version
from zhub.cli.output import facts, moment, note, percent, put, show_json, size, sparkline, status, table
from zhub.cli.watching import event_line, watch
from zhub.client import Client
from zhub.client.wire.training import CheckpointRecord, FineTuningJob, LogLine

SERIES_POINTS = 40  # as wide as a sparkline

app = typer.Typer(help="Training jobs.", no_args_is_help=True)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the jobs, newest first."""
    with connect(data_dir) as client:
        all_jobs = client.jobs.list()
    if as_json:
        return show_json(all_jobs)
    rows = [
        (job.id, status(job.status), job.model, job.fine_tuned_model or job.suffix or "-", moment(job.created_at))
        for job in all_jobs
    ]
    put(table(("ID", "STATUS", "BASE", "EXPERT", "CREATED"), rows, whole=2))


@app.command()
def show(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one job."""
    with connect(data_dir) as client:
        show_job(client.jobs.get(job_id), as_json)


@app.command("watch")
def watch_job(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Follow a job until it ends; Ctrl-C leaves it running. Exits with 7 if it fails."""
    with connect(data_dir) as client:
        finish(client, watch(client, job_id), as_json)


@app.command()
def logs(
    job_id: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job ends.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only this attempt, counted from 1.")] = None,
    tail: Annotated[int | None, typer.Option(min=1, max=10_000, help="Only so many of the last lines.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's log: steps, warnings, tracebacks, what its grader printed. With --json, one object a line."""
    with connect(data_dir) as client:
        read = client.logs.follow if follow else client.logs.read
        for line in read(job_id, attempt=attempt, tail=tail):
            typer.echo(line.model_dump_json()) if as_json else put(Text(_log_line(line)), soft_wrap=True)


def _log_line(line: LogLine) -> str:
    said = f"{line.at}  {line.level} {line.logger}: {line.message}"
    # A grader may print control characters, which must not reach the terminal.
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in said)


@app.command()
def events(
    job_id: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job ends.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print everything that happened to a job, oldest first. With --follow and --json, one event a line."""
    with connect(data_dir) as client:
        if follow:
            for _job, new in client.jobs.follow(job_id):
                for event in new:
                    typer.echo(event.model_dump_json()) if as_json else put(Text(event_line(event)), soft_wrap=True)
            return
        all_events = client.jobs.events(job_id)
    if as_json:
        return show_json(all_events)
    for event in all_events:
        put(Text(event_line(event)), soft_wrap=True)


@app.command()
def metrics(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show the metrics of a job's training by step."""
    with connect(data_dir) as client:
        all_series = client.jobs.metrics(job_id, points=SERIES_POINTS)
    if as_json:
        return show_json(all_series)
    rows = []
    for series in all_series:
        values = [point.value for point in series.points]
        extremes = (f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values)))
        rows.append((series.name, str(series.count), *extremes, sparkline(_scaled(values))))
    put(table(("METRIC", "POINTS", "FIRST", "LAST", "LOWEST", "HIGHEST", "COURSE"), rows, whole=7))


def _scaled(values: Sequence[float]) -> list[float]:
    """Between 0, the lowest, and 1, the highest."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


@app.command()
def cancel(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Ask for a job to stop."""
    with connect(data_dir) as client:
        job = client.jobs.cancel(job_id)
    show_job(job, as_json)
    if not job.ended:
        note(f"It ends once its worker has stopped; `zhub jobs watch {job_id}` shows when.")


@app.command()
def pause(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Have a job write a checkpoint and release its worker."""
    with connect(data_dir) as client:
        job = client.jobs.pause(job_id)
    show_job(job, as_json)
    note(f"`zhub jobs resume {job_id}` continues where it stopped.")


@app.command()
def resume(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Queue a paused job again; it continues from its newest checkpoint."""
    with connect(data_dir) as client:
        show_job(client.jobs.resume(job_id), as_json)


@app.command()
def redrive(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Queue a failed or cancelled job again; a training continues from its newest checkpoint."""
    with connect(data_dir) as client:
        show_job(client.jobs.redrive(job_id), as_json)


@app.command()
def checkpoints(job_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the checkpoints of a job, newest first; each is also a model, by its name."""
    with connect(data_dir) as client:
        job_checkpoints = client.jobs.checkpoints(job_id)
    if as_json:
        return show_json(job_checkpoints)
    rows = [
        (
            checkpoint.fine_tuned_model_checkpoint,
            str(checkpoint.step_number),
            _score(checkpoint),
            size(checkpoint.size_bytes),
            moment(checkpoint.created_at),
        )
        for checkpoint in job_checkpoints
    ]
    put(table(("MODEL", "STEP", "VALIDATION", "SIZE", "CREATED"), rows, whole=2))


def _score(checkpoint: CheckpointRecord) -> str:
    reward = checkpoint.metrics.get("valid_reward_mean")
    return "-" if reward is None else percent(reward)


def finish(client: Client, job: FineTuningJob, as_json: bool) -> None:
    """Show how a job ended: its expert, or its error and an exit code."""
    if job.fine_tuned_model is None:
        show_job(job, as_json)
        raise typer.Exit(JOB_FAILED)
    if as_json:
        return show_json(job)
    show_version(client.experts.get(job.fine_tuned_model), as_json=False)


def show_job(job: FineTuningJob, as_json: bool) -> None:
    if as_json:
        return show_json(job)
    hyperparameters = ", ".join(f"{name}={value}" for name, value in sorted(job.hyperparameters.items()))
    put(
        facts(
            [
                ("id", job.id),
                ("status", status(job.status)),
                *([("error", str(job.error["message"]))] if job.error else []),
                ("base", job.model),
                ("expert", job.fine_tuned_model or job.suffix or "-"),
                ("dataset", job.training_file or "-"),
                ("method", f"{job.method['type']}: {hyperparameters}"),
                ("seed", str(job.seed)),
                ("created", moment(job.created_at)),
                ("finished", moment(job.finished_at) if job.finished_at else "-"),
                ("attempts", str(job.attempts)),
                ("cluster", job.cluster),
                ("priority", str(job.priority)),
            ]
        )
    )
