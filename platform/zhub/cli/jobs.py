"""``zhub jobs``."""

from collections.abc import Sequence
from typing import Annotated, Literal

import typer
from rich.text import Text

from zhub.cli import curves, outcomes
from zhub.cli.commands_for_routes import with_commands
from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import JOB_FAILED
from zhub.cli.experts import show_version
from zhub.cli.listings import ORDERS, JobStatusOption, LimitOption, SearchOption, SinceOption, SortOption
from zhub.cli.output import duration, facts, moment, money, note, percent, put, show_json, size, table
from zhub.cli.output import status as shown_status
from zhub.cli.watching import event_line, watch
from zhub.client import Client
from zhub.client.wire.training import CheckpointRecord, FineTuningJob, LogLine

SIGNIFICANCE = 0.05

JobIdsArgument = Annotated[list[str], typer.Argument(metavar="ID", help="ftjob-…, one or several.")]

app = typer.Typer(help="Training jobs.", no_args_is_help=True)


@app.command()
def ls(
    status: JobStatusOption = None,
    method: Annotated[
        Literal["reinforcement", "supervised", "dpo", "few_shot"] | None,
        typer.Option(help="Only those trained like this."),
    ] = None,
    expert: Annotated[str | None, typer.Option(help="Only those that train this expert.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only those with this tag; may be repeated.")
    ] = None,
    archived: Annotated[
        bool, typer.Option("--archived", help="Those that are archived, which are left out otherwise.")
    ] = False,
    search: SearchOption = None,
    since: SinceOption = None,
    sort: SortOption = "newest",
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs: all of them, or those that the options describe."""
    with connect(data_dir) as client:
        listed = client.jobs.list(
            most=limit,
            status=status,
            method=method,
            expert=expert,
            metadata=parse_tags(tag or []) or None,
            archived=archived,
            search=search,
            since=since,
            order=ORDERS[sort],
        )
    if as_json:
        return show_json(listed)
    rows = [
        (
            job.id,
            shown_status(job.status),
            job.model,
            job.fine_tuned_model or job.suffix or "-",
            result_line(job),
            moment(job.created_at),
        )
        for job in listed
    ]
    put(table(("ID", "STATUS", "BASE", "EXPERT", "RESULT", "CREATED"), rows, whole=2))


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


app.command()(curves.metrics)
app.command()(curves.curve)


@app.command()
def describe(
    job_id: str,
    text: Annotated[str, typer.Argument(help="What to say of it; an empty text removes what was said.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a job is about."""
    with connect(data_dir) as client:
        show_job(client.jobs.change(job_id, description=text), as_json)


@app.command()
def tag(
    job_id: str,
    tags: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Tags to set.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A tag to remove; may be repeated.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set and remove tags of a job: the `metadata` of the API. `zhub jobs ls --tag` finds by them."""
    with connect(data_dir) as client:
        kept = {key: value for key, value in client.jobs.get(job_id).metadata.items() if key not in (remove or [])}
        show_job(client.jobs.change(job_id, metadata=kept | parse_tags(tags or [])), as_json)


@app.command()
def archive(job_ids: JobIdsArgument, data_dir: DataDirOption = None) -> None:
    """Hide jobs that have ended from `zhub jobs ls`. What they published stays, with its history."""
    with connect(data_dir) as client:
        for job_id in job_ids:
            client.jobs.change(job_id, archived=True)
            note(f"{job_id} is archived; `zhub jobs unarchive {job_id}` shows it again.")


@app.command()
def unarchive(job_ids: JobIdsArgument, data_dir: DataDirOption = None) -> None:
    """Show archived jobs in `zhub jobs ls` again."""
    with connect(data_dir) as client:
        for job_id in job_ids:
            client.jobs.change(job_id, archived=False)
            note(f"{job_id} is listed again.")


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
    version = client.experts.get(job.fine_tuned_model)
    show_version(version, as_json=False, examples=outcomes.examples(client, version))


def parse_tags(tags: Sequence[str]) -> dict[str, str]:
    """``key=value`` pairs."""
    pairs = [tag.partition("=") for tag in tags]
    for key, equals, value in pairs:
        if not (key and equals):
            raise typer.BadParameter(f"expected KEY=VALUE, found '{key}{equals}{value}'")
    return {key: value for key, _, value in pairs}


def _tags_line(job: FineTuningJob) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(job.metadata.items()))


def result_line(job: FineTuningJob) -> str | Text:
    """What a job led to: the accuracy of base and expert on test rows, or that nothing was learned."""
    result = job.result
    if result is None:
        return "-"
    if result.learned_nothing:
        return Text("learned nothing", "yellow")
    if result.base_mean is None or result.expert_mean is None:
        return f"best at step {result.best_step}"
    noise = " (noise)" if result.p_value is not None and result.p_value >= SIGNIFICANCE else ""
    return f"{percent(result.base_mean)} → {percent(result.expert_mean)}{noise}"


def show_job(job: FineTuningJob, as_json: bool) -> None:
    if as_json:
        return show_json(job)
    hyperparameters = ", ".join(f"{name}={value}" for name, value in sorted(job.hyperparameters.items()))
    put(
        facts(
            [
                ("id", job.id),
                ("status", shown_status(job.status)),
                *([("error", with_commands(str(job.error["message"])))] if job.error else []),
                ("base", job.model),
                ("expert", job.fine_tuned_model or job.suffix or "-"),
                *([("result", result_line(job))] if job.result else []),
                *([("beside it", job.result.general)] if job.result and job.result.general else []),
                *([("description", job.description)] if job.description else []),
                *([("tags", _tags_line(job))] if job.metadata else []),
                *([("archived", moment(job.archived_at))] if job.archived_at else []),
                ("dataset", job.training_file or "-"),
                ("method", f"{job.method['type']}: {hyperparameters}"),
                *([("mixes", ", ".join(mixed))] if (mixed := job.method[job.method["type"]].get("experts")) else []),
                ("seed", str(job.seed)),
                ("created", moment(job.created_at)),
                ("finished", moment(job.finished_at) if job.finished_at else "-"),
                ("attempts", str(job.attempts)),
                *([("worker time", duration(job.worker_seconds))] if job.worker_seconds else []),
                *([("cost", money(job.cost.value, job.cost.currency))] if job.cost else []),
                ("cluster", job.cluster),
                ("priority", str(job.priority)),
            ]
        )
    )
