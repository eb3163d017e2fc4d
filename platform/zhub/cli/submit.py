"""``zhub submit``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.jobs import finish, show_job
from zhub.cli.output import duration, facts, money, note, put, show_json, stderr
from zhub.cli.uploads import (
    AnswerColumnOption,
    PromptColumnOption,
    PromptTemplateOption,
    SkipIncompleteOption,
    Uploads,
    uploading,
)
from zhub.cli.watching import watch
from zhub.client import Client
from zhub.client.wire.training import EstimateRecord, TokenCountRecord
from zhub.datasets.conversion.mapping import ChosenColumns
from zhub.datasets.conversion.mapping import Method as ConversionMethod
from zhub.errors import InvalidRequestError, LongRow, PromptTooLongError, UnavailableError

COUNT_S = 600.0
SHORT_COUNT_S = 60.0  # that a submitted training waits for: where no worker is there, it may wait in the queue

ANSWER_GRADER = {
    "type": "string_check",
    "name": "answer",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}

RecipeName = Literal["reinforcement", "supervised", "dpo", "few_shot"]
MethodOption = Annotated[
    RecipeName,
    typer.Option(help="How to make the expert; few_shot searches a mixture of --mix."),
]
MixOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EXPERT", help="With few_shot: an expert version, or a release for all it pins; may be repeated."
    ),
]
GraderOption = Annotated[
    Path | None,
    typer.Option(help="A JSON file with a grader.", show_default="the answer equals the row's column 'answer'"),
]
SuffixOption = Annotated[str | None, typer.Option(help="The expert's name.", show_default="the file's name")]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter; may be repeated.")
]
ClusterOption = Annotated[
    str | None, typer.Option(help="Which workers train it, where there are several kinds.", show_default="default")
]
PriorityOption = Annotated[
    int | None,
    typer.Option(
        help="0 to 9: each is a head start of ten minutes over the other jobs of your organisation.", show_default="0"
    ),
]
MeasuringClusterOption = Annotated[
    str | None, typer.Option(help="Which workers measure, where there are several kinds.", show_default="default")
]
LongRowsOption = Annotated[
    Literal["refuse", "skip", "cut"] | None,
    typer.Option(help="What to do about rows longer than the base's context.", show_default="refuse"),
]


def submit(
    dataset: Annotated[str, typer.Argument(help="A data file to upload, or the id of an uploaded one (file-…).")],
    base: Annotated[str, typer.Option(help="The base model to train on, or an expert version to continue from.")],
    method: MethodOption = "reinforcement",
    mix: MixOption = None,
    grader: GraderOption = None,
    suffix: SuffixOption = None,
    settings: SettingsOption = None,
    long_rows: LongRowsOption = None,
    prompt_column: PromptColumnOption = None,
    answer_column: AnswerColumnOption = None,
    prompt_template: PromptTemplateOption = None,
    skip_incomplete: SkipIncompleteOption = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeat a training, up to rounding where jobs share a worker.", show_default="random"),
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option(metavar="JOB", help="Wait until this job has succeeded; may be repeated.")
    ] = None,
    dedup_key: Annotated[
        str | None, typer.Option(help="If a job with this key has not ended, show that job and submit nothing.")
    ] = None,
    gate: Annotated[
        Path | None, typer.Option(help="A JSON file with the gate that the version must pass to get an alias.")
    ] = None,
    cluster: ClusterOption = None,
    priority: PriorityOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", "--estimate", help="Check the request and show what the job would take; submit nothing."
        ),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the job; exit with 7 if it fails.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an expert on a dataset. What is refused, and a dry run, leaves no file behind."""
    request: Any = {"model": base, "suffix": suffix, "seed": seed, "depends_on": after or [], "dedup_key": dedup_key}
    chosen_long_rows = [f"long_rows={long_rows}"] if long_rows is not None else []
    request["method"] = training_method(method, grader, [*(settings or []), *chosen_long_rows], mix or [])
    if cluster is not None:
        request["cluster"] = cluster
    if priority is not None:
        request["priority"] = priority
    with connect(data_dir) as client, uploading(client) as uploads:
        if gate is not None:
            request["promotion"] = read_gate(uploads, gate)
        request["training_file"] = uploads.file_id(
            dataset,
            purpose="user_data",
            method=method_of_rows(method),
            chosen=ChosenColumns(prompt_column, answer_column, prompt_template),
            skip_incomplete=skip_incomplete,
        )
        # Before the rows are counted: what is wrong with the request is known at once.
        estimate = client.jobs.estimate(**request)
        count = count_tokens(client, request["training_file"], base, timeout_s=COUNT_S if dry_run else SHORT_COUNT_S)
        how = request["method"][method]["hyperparameters"].get("long_rows")
        if count is not None and count.tokenizer_warning:
            note(f"Warning: {count.tokenizer_warning}")
        long = what_becomes_of_long_rows(count, how, is_converted=uploads.is_converted(request["training_file"]))
        if dry_run:
            return show_estimate(estimate, long, as_json)
        job = client.jobs.create(**request)
        # With a dedup_key it may be an earlier job, of another file.
        if job.training_file == request["training_file"]:
            uploads.keep()
        if long:
            note(f"Rows longer than the base's context: {long}.")
        note(f"Submitted {job.id}." + ("" if wait else f" Follow it with `zhub jobs watch {job.id}`."))
        if wait:
            return finish(client, watch(client, job.id), as_json)
        show_job(job, as_json)


def count_tokens(client: Client, file_id: str, base: str, *, timeout_s: float) -> TokenCountRecord | None:
    """Which rows do not fit the base; None, and a note, where nobody counts them: the training does it in any case."""
    try:
        with stderr().status("The lengths of the rows are being counted"):
            return client.files.count_tokens(file_id, base, timeout_s=timeout_s)
    except UnavailableError as exc:
        note(f"Whether rows are longer than the base's context will be known when the training begins. {exc}")
        return None


def what_becomes_of_long_rows(count: TokenCountRecord | None, how: str | None, *, is_converted: bool) -> str | None:
    """What a training does about rows longer than the context, in words; None where there are none.

    Raises:
        InvalidRequestError: they are refused; with all of them.
    """
    if count is None or not count.long_row_count:
        return None
    assert count.context_length is not None
    rows = [LongRow(row.line, row.tokens) for row in count.long_rows]
    if how in ("skip", "cut"):
        return f"{count.long_row_count:,} are {'left out' if how == 'skip' else 'cut'}, the first: {rows[0]}"
    error = PromptTooLongError(rows[0].line, rows[0].tokens, count.context_length, rows, count=count.long_row_count)
    lines = " The lines are those of the rows that `zhub datasets convert` writes." if is_converted else ""
    raise InvalidRequestError(f"{error}{lines} Nothing was submitted; try `--long-rows skip` or `--long-rows cut`.")


def show_estimate(estimate: EstimateRecord, long_rows: str | None, as_json: bool) -> None:
    if as_json:
        return show_json(estimate)
    resolved = estimate.method[estimate.method["type"]]["hyperparameters"]
    workers = "a slot of a worker, beside other small jobs" if estimate.shares_a_worker else f"{estimate.workers:d}"
    put(
        facts(
            [
                ("expert", estimate.expert),
                ("method", f"{estimate.method['type']}: " + ", ".join(f"{n}={v}" for n, v in sorted(resolved.items()))),
                ("workers", workers),
                *_expectation(estimate),
                *([("long rows", long_rows)] if long_rows else []),
            ]
        )
    )
    note("Nothing was submitted.")


def _expectation(estimate: EstimateRecord) -> list[tuple[str, str]]:
    """How long the job may run and what it costs, with what that rests on."""
    past, seconds = estimate.based_on, estimate.expected_seconds
    if seconds is None or past is None or not past.trainings:
        return [("runs for", "unknown: no such training on this base has ended yet")]
    spread = ""
    if estimate.shortest_seconds is not None and estimate.longest_seconds is not None and past.trainings > 1:
        spread = f" ({duration(estimate.shortest_seconds)} to {duration(estimate.longest_seconds)})"
    what = "steps of the same size" if past.same_size else "steps of other sizes"
    cost, at_most = estimate.expected_cost, " at most: it shares a worker" if estimate.shares_a_worker else ""
    trainings = "1 earlier training" if past.trainings == 1 else f"{past.trainings} earlier trainings"
    return [
        ("runs for", f"{duration(seconds)}{spread}"),
        ("worker time", duration(estimate.expected_worker_seconds or seconds)),
        *([("cost", f"{money(cost.value, cost.currency)}{at_most}")] if cost else []),
        *([("tokens", f"{estimate.expected_tokens:,}")] if estimate.expected_tokens is not None else []),
        ("by", f"{trainings} of this method on this base, with {what}"),
    ]


def method_of_rows(method: RecipeName) -> ConversionMethod:
    """The method that says how a file becomes rows: those of a few-shot search are those of reinforcement."""
    return "reinforcement" if method == "few_shot" else method


def training_method(method: str, grader: Path | None, settings: list[str], mixed: Sequence[str] = ()) -> dict[str, Any]:
    """The ``method`` of a request, from the options of the command."""
    body: dict[str, Any] = {"hyperparameters": parse_settings(settings)}
    if method in ("reinforcement", "few_shot"):
        body["grader"] = read_grader(grader)
    elif grader is not None:
        raise typer.BadParameter("a grader goes with --method reinforcement or few_shot", param_hint="--grader")
    if method == "few_shot":
        if not mixed:
            raise typer.BadParameter("few_shot mixes experts: name one or more with --mix", param_hint="--mix")
        body["experts"] = list(mixed)
    elif mixed:
        raise typer.BadParameter("it goes with --method few_shot", param_hint="--mix")
    return {"type": method, method: body}


def read_grader(path: Path | None) -> Any:
    """The grader in a file; by default the answer must equal the row's column ``answer``."""
    return ANSWER_GRADER if path is None else read_json(path, "grader")


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; a value that reads as JSON is a number or a truth value, any other is text."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"expected NAME=VALUE, found '{setting}'", param_hint="--set")
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; ``what`` names it in errors."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise InvalidRequestError(f"{path}: the {what} cannot be read: {exc.strerror}.") from exc
    except ValueError as exc:
        raise InvalidRequestError(f"{path}: the {what} is not JSON: {exc}.") from exc


def read_gate(uploads: Uploads, path: Path) -> Any:
    """A gate from a JSON file. Where a suite's ``file`` is a path, beginning at the folder of the gate, it is uploaded.

    What is no gate is left to the API to refuse.
    """
    gate = read_json(path, "gate")
    suites = gate.get("suites") if isinstance(gate, dict) else None
    for suite in suites if isinstance(suites, list) else []:
        if isinstance(suite, dict) and isinstance(suite.get("file"), str):
            suite["file"] = uploads.file_id(suite["file"], purpose="evals", folder=path.parent)
    return gate
