"""``zhub schedules``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, moment, note, put, show_json, status, table
from zhub.cli.submit import (
    ClusterOption,
    GraderOption,
    MethodOption,
    PriorityOption,
    SettingsOption,
    SuffixOption,
    read_gate,
    training_method,
)
from zhub.cli.uploads import uploading
from zhub.client.wire.lifecycle import ScheduleRecord, TickRecord

SHOWN_TICKS = 10

app = typer.Typer(help="Schedules: trainings that are submitted automatically.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The schedule's name.")],
    dataset: Annotated[
        str, typer.Argument(help="A data file to upload, a dataset's name, or the id of a file of it (file-…).")
    ],
    base: Annotated[
        str, typer.Option(help="The base model to train on, or an expert version or alias to continue from.")
    ],
    cron: Annotated[str | None, typer.Option(help="When: minute hour day month weekday, as in '0 3 * * 1'.")] = None,
    timezone: Annotated[str, typer.Option(help="A time zone of IANA's, as in Europe/Paris.")] = "UTC",
    on_new_data: Annotated[
        bool, typer.Option("--on-new-data", help="Whenever a new version of the dataset has been checked.")
    ] = False,
    on_regression: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS",
            help="When the version that this alias (project.expert@prod) points to is worse than its base.",
        ),
    ] = None,
    on_feedback: Annotated[
        int | None, typer.Option(help="When its expert has got so many new pieces of feedback.")
    ] = None,
    method: MethodOption = "reinforcement",
    grader: GraderOption = None,
    suffix: SuffixOption = None,
    settings: SettingsOption = None,
    gate: Annotated[
        Path | None, typer.Option(help="A JSON file with the gate that each version must pass to get an alias.")
    ] = None,
    cluster: ClusterOption = None,
    priority: PriorityOption = None,
    misfire: Annotated[
        Literal["skip", "fire_once", "backfill"], typer.Option(help="What to do about ticks that were missed.")
    ] = "fire_once",
    overlap: Annotated[
        Literal["skip", "buffer_one", "allow", "cancel_running"],
        typer.Option(help="What to do while the job of an earlier tick runs."),
    ] = "skip",
    jitter_s: Annotated[int, typer.Option(help="Spread the start over so many seconds.")] = 0,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the newest version of a dataset, repeatedly."""
    training: dict[str, Any] = {"model": base, "suffix": suffix}
    training["method"] = training_method(method, grader, settings or [])
    if cluster is not None:
        training["cluster"] = cluster
    if priority is not None:
        training["priority"] = priority
    with connect(data_dir) as client, uploading(client) as uploads:
        if gate is not None:
            training["promotion"] = read_gate(uploads, gate)
        if Path(dataset).is_file():
            dataset = uploads.file_id(dataset, purpose="fine-tune", method=method)
        made = client.schedules.create(
            name=name,
            dataset=dataset,
            training=training,
            cron=cron,
            timezone=timezone,
            on_new_data=on_new_data,
            on_regression=on_regression,
            on_feedback=on_feedback,
            misfire=misfire,
            overlap=overlap,
            jitter_s=jitter_s,
        )
        uploads.keep()
    show_schedule(made, [], as_json)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the schedules."""
    with connect(data_dir) as client:
        schedules = client.schedules.list()
    if as_json:
        return show_json(schedules)
    rows = [
        (
            schedule.name,
            status(schedule.status),
            when(schedule),
            schedule.dataset,
            moment(schedule.next_runs[0]) if schedule.next_runs else "-",
        )
        for schedule in schedules
    ]
    put(table(("NAME", "STATUS", "WHEN", "DATASET", "NEXT"), rows, whole=1))


@app.command()
def show(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one schedule, its next runs, and the outcomes of its last ticks."""
    with connect(data_dir) as client:
        schedule = client.schedules.find(name)
        show_schedule(schedule, list(client.schedules.ticks(schedule.id))[:SHOWN_TICKS], as_json)


@app.command()
def run(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Fire a schedule now."""
    with connect(data_dir) as client:
        tick = client.schedules.run(client.schedules.find(name).id)
    if as_json:
        return show_json(tick)
    put(facts([("outcome", status(tick.outcome)), ("job", tick.job or "-"), ("because", tick.message or "-")]))
    if tick.job:
        note(f"Follow it with `zhub jobs watch {tick.job}`.")


@app.command()
def pause(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Stop a schedule from firing until it is resumed."""
    with connect(data_dir) as client:
        show_schedule(client.schedules.pause(client.schedules.find(name).id), [], as_json)


@app.command()
def resume(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Let a paused schedule fire again, from its next tick on."""
    with connect(data_dir) as client:
        show_schedule(client.schedules.resume(client.schedules.find(name).id), [], as_json)


@app.command()
def rm(name: str, data_dir: DataDirOption = None) -> None:
    """Remove a schedule. Its jobs stay."""
    with connect(data_dir) as client:
        client.schedules.delete(client.schedules.find(name).id)
    note(f"The schedule '{name}' is removed.")


def when(schedule: ScheduleRecord) -> str:
    parts = [f"{schedule.cron} ({schedule.timezone})"] if schedule.cron else []
    parts += ["new data"] * schedule.on_new_data
    parts += [f"a regression of {schedule.on_regression}"] if schedule.on_regression else []
    parts += [f"feedback, at {schedule.new_feedback} of {schedule.on_feedback}"] if schedule.on_feedback else []
    return " and ".join(parts)


def gate_line(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return "none: no alias moves"
    return f"{gate.get('rule', 'not_worse').replace('_', ' ')}, to get @{gate.get('alias', 'prod')}"


def show_schedule(schedule: ScheduleRecord, ticks: list[TickRecord], as_json: bool) -> None:
    if as_json:
        return show_json(schedule)
    put(
        facts(
            [
                ("name", schedule.name),
                ("id", schedule.id),
                ("status", status(schedule.status)),
                *([("because", schedule.paused_because)] if schedule.paused_because else []),
                ("fires", when(schedule)),
                ("next", ", ".join(moment(run) for run in schedule.next_runs[:3]) or "-"),
                ("dataset", f"{schedule.dataset}, its newest version"),
                ("trains", f"{schedule.training['method']['type']} on {schedule.training['model']}"),
                ("gate", gate_line(schedule.training.get("promotion"))),
                ("missed ticks", schedule.misfire.replace("_", " ")),
                ("overlap", schedule.overlap.replace("_", " ")),
                ("failed in a row", f"{schedule.failures}; {schedule.max_failures} pause it"),
            ]
        )
    )
    if ticks:
        put()
        rows = [(tick.tick, status(tick.outcome), tick.job or "-", tick.message or "") for tick in ticks]
        put(table(("TICK", "OUTCOME", "JOB", "BECAUSE"), rows, whole=3))
