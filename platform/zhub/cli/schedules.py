"""``zhub schedules``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.listings import LimitOption, SearchOption
from zhub.cli.output import facts, moment, note, put, show_json, status, table
from zhub.cli.submit import (
    ClusterOption,
    GraderOption,
    MethodOption,
    MixOption,
    PriorityOption,
    SettingsOption,
    SuffixOption,
    method_of_rows,
    parse_settings,
    read_gate,
    read_grader,
    training_method,
)
from zhub.cli.uploads import uploading
from zhub.client.wire.lifecycle import ScheduleRecord, TickRecord

SHOWN_TICKS = 10
EDITABLE = {
    "name", "dataset", "training", "cron", "timezone", "on_new_data", "on_regression", "on_feedback", "on_completions",
    "completions_where", "misfire", "overlap", "jitter_s", "max_failures",
}  # fmt: skip

OnCompletionsOption = Annotated[
    int | None,
    typer.Option(min=0, help="Make a version of the dataset when so many stored completions have come or were rated."),
]
CompletionsWhereOption = Annotated[
    str | None, typer.Option(metavar="QUERY", help="Which of them, as in 'expert:main.sums rating:up'.")
]

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
    on_completions: OnCompletionsOption = None,
    completions_where: CompletionsWhereOption = None,
    method: MethodOption = "reinforcement",
    mix: MixOption = None,
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
    training["method"] = training_method(method, grader, settings or [], mix or [])
    if cluster is not None:
        training["cluster"] = cluster
    if priority is not None:
        training["priority"] = priority
    with connect(data_dir) as client, uploading(client) as uploads:
        if gate is not None:
            training["promotion"] = read_gate(uploads, gate)
        if Path(dataset).is_file():
            dataset = uploads.file_id(dataset, purpose="fine-tune", method=method_of_rows(method))
        made = client.schedules.create(
            name=name,
            dataset=dataset,
            training=training,
            cron=cron,
            timezone=timezone,
            on_new_data=on_new_data,
            on_regression=on_regression,
            on_feedback=on_feedback,
            on_completions=on_completions,
            completions_where=completions_where,
            misfire=misfire,
            overlap=overlap,
            jitter_s=jitter_s,
        )
        uploads.keep()
    show_schedule(made, [], as_json)


@app.command()
def edit(
    name: Annotated[str, typer.Argument(help="The schedule's name or id.")],
    new_name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Another dataset, by its name or the id of a file.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base model, or version to continue from.")] = None,
    cron: Annotated[str | None, typer.Option(help="Other times; '' for none.")] = None,
    timezone: Annotated[str | None, typer.Option(help="A time zone of IANA's, as in Europe/Paris.")] = None,
    on_new_data: Annotated[
        bool | None, typer.Option("--on-new-data/--no-on-new-data", help="Whether new data fires it.")
    ] = None,
    on_regression: Annotated[
        str | None, typer.Option(metavar="ALIAS", help="An alias whose regression fires it; '' for none.")
    ] = None,
    on_feedback: Annotated[int | None, typer.Option(min=0, help="How much feedback fires it; 0 for none.")] = None,
    on_completions: OnCompletionsOption = None,
    completions_where: CompletionsWhereOption = None,
    method: Annotated[Literal["reinforcement", "supervised", "dpo"] | None, typer.Option()] = None,
    grader: Annotated[Path | None, typer.Option(help="A JSON file with another grader.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Another expert's name; '' for the dataset's.")] = None,
    settings: SettingsOption = None,
    gate: Annotated[Path | None, typer.Option(help="A JSON file with another gate.")] = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="No alias moves any more.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Which workers train it.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9.")] = None,
    misfire: Annotated[
        Literal["skip", "fire_once", "backfill"] | None, typer.Option(help="What to do about ticks that were missed.")
    ] = None,
    overlap: Annotated[
        Literal["skip", "buffer_one", "allow", "cancel_running"] | None,
        typer.Option(help="What to do while the job of an earlier tick runs."),
    ] = None,
    jitter_s: Annotated[int | None, typer.Option(help="Spread the start over so many seconds.")] = None,
    max_failures: Annotated[int | None, typer.Option(help="Runs in a row that may fail before it is paused.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what the options name of a schedule, and show what changed and when it runs next."""
    changes = _given(
        name=new_name,
        dataset=dataset,
        cron=cron,
        timezone=timezone,
        on_new_data=on_new_data,
        on_regression=on_regression,
        on_feedback=on_feedback,
        on_completions=on_completions,
        completions_where="" if on_completions == 0 else completions_where,
        misfire=misfire,
        overlap=overlap,
        jitter_s=jitter_s,
        max_failures=max_failures,
    )
    training = _given(model=base, suffix=suffix, cluster=cluster, priority=priority)
    with connect(data_dir) as client, uploading(client) as uploads:
        before = client.schedules.find(name)
        if method is not None or grader is not None or settings:
            training["method"] = method_change(before.training["method"]["type"], method, grader, settings or [])
        if gate is not None or no_gate:
            training["promotion"] = None if gate is None else read_gate(uploads, gate)
        if training:
            changes["training"] = training
        if not changes:
            raise typer.BadParameter("give at least one option with what to change")
        after = client.schedules.edit(before.id, **changes)
        uploads.keep()
    if as_json:
        return show_json(after)
    show_changes(before, after)


@app.command()
def ls(
    only: Annotated[
        Literal["active", "paused"] | None, typer.Option("--status", help="Only those with this status.")
    ] = None,
    search: SearchOption = None,
    sort: Annotated[
        Literal["name", "next"], typer.Option("--sort", help="By name, or by when they run next.")
    ] = "name",
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the schedules: all of them, or those that the options describe."""
    with connect(data_dir) as client:
        schedules = client.schedules.list(status=only, search=search)
    if sort == "next":
        schedules.sort(key=lambda schedule: schedule.next_runs[0] if schedule.next_runs else math.inf)
    schedules = schedules[:limit]
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


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given, by their fields; an empty text, or a number of 0 events, removes a field."""
    changes = {field: option for field, option in options.items() if option is not None}
    counts = ("on_feedback", "on_completions")
    removed = {field for field, option in changes.items() if option == "" or (field in counts and option == 0)}
    return changes | dict.fromkeys(removed)


def method_change(was: str, method: str | None, grader: Path | None, settings: list[str]) -> dict[str, Any]:
    """The change of a training's method: another one, or another grader and settings of the same."""
    if method is not None and method != was:
        return {was: None, **training_method(method, grader, settings)}
    body: dict[str, Any] = {"hyperparameters": parse_settings(settings)}
    if grader is not None:
        body["grader"] = read_grader(grader)
    return {was: body}


def show_changes(before: ScheduleRecord, after: ScheduleRecord) -> None:
    """What differs between the two, and the next runs."""
    old, new = _flat(before.model_dump(include=EDITABLE)), _flat(after.model_dump(include=EDITABLE))
    rows = [(field, old.get(field, "-"), new.get(field, "-")) for field in sorted(old | new)]
    changed = [row for row in rows if row[1] != row[2]]
    if changed:
        put(table(("FIELD", "WAS", "IS"), changed, whole=1))
    else:
        note("Nothing changed: it was like that already.")
    note(f"{after.name} runs next: {_next_runs(after)}.")


def _next_runs(schedule: ScheduleRecord) -> str:
    if schedule.status == "paused":
        return f"not before somebody resumes it (`zhub schedules resume {schedule.name}`)"
    return ", ".join(moment(run) for run in schedule.next_runs) or f"after {when(schedule)}"


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Each value within objects as text, by its path; without those that are None, and empty objects."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        return {path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
    flat: dict[str, str] = {}
    for name, part in value.items():
        flat |= _flat(part, f"{path}.{name}" if path else name)
    return flat


def when(schedule: ScheduleRecord) -> str:
    parts = [f"{schedule.cron} ({schedule.timezone})"] if schedule.cron else []
    parts += ["new data"] * schedule.on_new_data
    parts += [f"a regression of {schedule.on_regression}"] if schedule.on_regression else []
    parts += [f"feedback, at {schedule.new_feedback} of {schedule.on_feedback}"] if schedule.on_feedback else []
    if schedule.on_completions:
        which = f" {schedule.completions_where}" if schedule.completions_where else ""
        parts.append(f"completions{which}, at {schedule.new_completions} of {schedule.on_completions}")
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
                ("next", ", ".join(moment(run) for run in schedule.next_runs) or "-"),
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
