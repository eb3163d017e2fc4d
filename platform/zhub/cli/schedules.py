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
    SettingsOption,
    SuffixOption,
    file_id,
    read_json,
    training_method,
)
from zhub.client.wire import ScheduleRecord, TickRecord

SHOWN_TICKS = 10

app = typer.Typer(help="Schedules: trainings that are submitted by themselves.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The schedule's name.")],
    dataset: Annotated[str, typer.Argument(help="A JSONL file, uploaded first, or a dataset's name or file (file-…).")],
    base: Annotated[str, typer.Option(help="The base model to train on, or an expert version or alias to go on from.")],
    cron: Annotated[str | None, typer.Option(help="When: minute hour day month weekday, as in '0 3 * * 1'.")] = None,
    timezone: Annotated[str, typer.Option(help="A time zone of IANA's, as in Europe/Paris.")] = "UTC",
    on_new_data: Annotated[
        bool, typer.Option("--on-new-data", help="Whenever a new version of the dataset has been checked.")
    ] = False,
    on_regression: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS", help="When the version of this alias (project.expert@prod) is worse than its base."
        ),
    ] = None,
    on_feedback: Annotated[
        int | None, typer.Option(help="When so many new pieces of feedback have come on the expert that it trains.")
    ] = None,
    method: MethodOption = "reinforcement",
    grader: GraderOption = None,
    suffix: SuffixOption = None,
    settings: SettingsOption = None,
    gate: Annotated[
        Path | None, typer.Option(help="A JSON file with the gate that each version must pass to get an alias.")
    ] = None,
    cluster: ClusterOption = None,
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
    """Train on the newest version of a dataset, again and again."""
    training: dict[str, Any] = {"model": base, "suffix": suffix}
    training["method"] = training_method(method, grader, settings or [])
    if gate is not None:
        training["promotion"] = read_json(gate, "gate")
    if cluster is not None:
        training["cluster"] = cluster
    with connect(data_dir) as client:
        made = client.schedules.create(
            name=name,
            dataset=file_id(client, dataset) if Path(dataset).is_file() else dataset,
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
    show_schedule(made, [], as_json)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the schedules."""
    with connect(data_dir) as client:
        found = client.schedules.list()
    if as_json:
        return show_json(found)
    rows = [
        (one.name, status(one.status), when(one), one.dataset, moment(one.next_runs[0]) if one.next_runs else "-")
        for one in found
    ]
    put(table(("NAME", "STATUS", "WHEN", "DATASET", "NEXT"), rows, whole=1))


@app.command()
def show(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one schedule, when it fires next, and what became of its last ticks."""
    with connect(data_dir) as client:
        found = client.schedules.find(name)
        show_schedule(found, list(client.schedules.ticks(found.id))[:SHOWN_TICKS], as_json)


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
    """Let a schedule fire no more until it is resumed."""
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
    note(f"The schedule '{name}' fires no more.")


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


def show_schedule(found: ScheduleRecord, ticks: list[TickRecord], as_json: bool) -> None:
    if as_json:
        return show_json(found)
    put(
        facts(
            [
                ("name", found.name),
                ("id", found.id),
                ("status", status(found.status)),
                *([("because", found.paused_because)] if found.paused_because else []),
                ("fires", when(found)),
                ("next", ", ".join(moment(run) for run in found.next_runs[:3]) or "-"),
                ("dataset", f"{found.dataset}, its newest version"),
                ("trains", f"{found.training['method']['type']} on {found.training['model']}"),
                ("gate", gate_line(found.training.get("promotion"))),
                ("missed ticks", found.misfire.replace("_", " ")),
                ("overlap", found.overlap.replace("_", " ")),
                ("failed in a row", f"{found.failures}; {found.max_failures} pause it"),
            ]
        )
    )
    if ticks:
        put()
        rows = [(tick.tick, status(tick.outcome), tick.job or "-", tick.message or "") for tick in ticks]
        put(table(("TICK", "OUTCOME", "JOB", "BECAUSE"), rows, whole=3))
