"""``zhub queue``."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.text import Text

from zhub.cli.connection import DatabaseUrlOption, DataDirOption, JsonOption, connect
from zhub.cli.output import duration, facts, moment, put, show_json, status

app = typer.Typer(
    help="The queue: what each job waits for, and whether the history breaks a rule.", no_args_is_help=True
)


@app.command()
def explain(
    waiting: Annotated[
        str, typer.Argument(metavar="ID", help="ftjob-…, eval-…, or the name of a base to be decomposed.")
    ],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a job waits for, its position, and when it may start."""
    with connect(data_dir) as client:
        wait = client.jobs.queue(waiting)
    if as_json:
        return show_json(wait)
    start = moment(wait.estimated_start) if wait.estimated_start else "not known yet"
    runs = duration(wait.expected_seconds) if wait.expected_seconds else "unknown: no such training has ended yet"
    rows: list[tuple[str, str | Text]] = [
        ("job", wait.job_id),
        ("status", status(wait.status)),
        ("waits for", wait.reason),
    ]
    if wait.position is not None:
        rows += [("position", str(wait.position)), ("starts", start), ("runs for", runs)]
    put(facts(rows))


@app.command()
def doctor(
    url: DatabaseUrlOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the whole history of jobs against the rules that always hold. Only reads. Exits with 1 if one is broken."""
    # Imported here, because it imports SQLAlchemy, which `--help` must not wait for.
    from zhub.cli.database_operations import examine_history, system_url

    examine_history(system_url(url, data_dir), as_json=as_json)


@app.command()
def redrive(
    organization: Annotated[str | None, typer.Option(help="Only jobs of this organisation.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind: train, validate, …")] = None,
    code: Annotated[str | None, typer.Option(help="Only jobs whose error has this code: lost, unavailable, …")] = None,
    within_hours: Annotated[
        float | None, typer.Option(min=0, help="Only jobs that failed within so many hours.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Queue them again; without this they are only listed.")] = False,
    url: DatabaseUrlOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the failed jobs of all organisations that the options describe, and with --yes queue them again."""
    from zhub.cli.database_operations import redrive_jobs, system_url
    from zhub.kinds.redrive import DeadLetters

    within = None if within_hours is None else timedelta(hours=within_hours)
    redrive_jobs(
        system_url(url, data_dir), DeadLetters(organization or None, kind or None, code or None, within), do_it=yes
    )
