"""``zhub evaluations``."""

from typing import Annotated

import typer
from rich.text import Text

from zhub.cli.commands_for_routes import with_commands
from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import JOB_FAILED
from zhub.cli.listings import ORDERS, JobStatusOption, LimitOption, SearchOption, SinceOption, SortOption
from zhub.cli.output import facts, interval, moment, note, p_value, percent, put, show_json, table
from zhub.cli.output import status as shown_status
from zhub.cli.submit import GraderOption, MeasuringClusterOption, read_grader
from zhub.cli.uploads import uploading
from zhub.client.wire.experts import EvaluationComparison, EvaluationRecord, EvaluationResults
from zhub.manifest import Accuracy

app = typer.Typer(
    help="Evaluations: how good models are on a file, and whether a difference is real.", no_args_is_help=True
)


@app.command()
def create(
    model: Annotated[str, typer.Argument(help="A version of an expert or of a release, or a base model.")],
    dataset: Annotated[str, typer.Argument(help="A data file to upload, or the id of an uploaded one (file-…).")],
    grader: GraderOption = None,
    compare_with: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Another model to measure; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="End each answer after so many tokens.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="Also sample, and estimate pass@k.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of what is sampled for pass@k.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is sampled for pass@k.")] = None,
    cluster: MeasuringClusterOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the results; exit with 7 if it fails.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model and its base on a file. What was measured on the same suite before is not run again."""
    with connect(data_dir) as client, uploading(client) as uploads:
        evaluation = client.evaluations.create(
            model=model,
            file=uploads.file_id(dataset, purpose="evals"),
            grader=read_grader(grader),
            compare_with=compare_with or [],
            max_new_tokens=max_new_tokens,
            k=k,
            temperature=temperature,
            seed=seed,
            cluster=cluster,
        )
        uploads.keep()
        if wait:
            note(f"Waiting for {evaluation.id} and {len(evaluation.others)} others of its suite.")
            evaluation = client.evaluations.wait_settled(evaluation.id)
        elif not evaluation.settled:
            note(f"`zhub evaluations show {evaluation.id}` shows the results once they are there.")
    show_evaluation(evaluation, as_json)
    if wait and evaluation.results is None:
        raise typer.Exit(JOB_FAILED)


@app.command()
def ls(
    status: JobStatusOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Only those of this version, of all versions of this expert or release, or of a base."),
    ] = None,
    search: SearchOption = None,
    since: SinceOption = None,
    sort: SortOption = "newest",
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the evaluations: all of them, or those that the options describe."""
    with connect(data_dir) as client:
        evaluations = client.evaluations.list(
            most=limit, status=status, model=model, search=search, since=since, order=ORDERS[sort]
        )
    if as_json:
        return show_json(evaluations)
    rows = [
        (
            evaluation.id,
            evaluation.model,
            shown_status(evaluation.status),
            _mean(evaluation.results),
            evaluation.suite["file"]["name"],
            moment(evaluation.created_at),
        )
        for evaluation in evaluations
    ]
    put(table(("ID", "MODEL", "STATUS", "MEAN [95 %]", "FILE", "CREATED"), rows, whole=2))


@app.command()
def show(evaluation_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one evaluation beside the others of its suite, and which differences are real."""
    with connect(data_dir) as client:
        show_evaluation(client.evaluations.get(evaluation_id), as_json)


def show_evaluation(evaluation: EvaluationRecord, as_json: bool) -> None:
    if as_json:
        return show_json(evaluation)
    suite = evaluation.suite
    sampled = f", pass@{suite['k']} of {suite['n']} samples at {suite['temperature']}" if suite["k"] > 1 else ""
    put(
        facts(
            [
                ("id", evaluation.id),
                *([("error", with_commands(str(evaluation.error["message"])))] if evaluation.error else []),
                ("file", f"{suite['file']['name']} (sha256:{suite['file']['sha256'][:12]})"),
                ("grader", f"{suite['grader']['type']} '{suite['grader']['name']}'"),
                ("cluster", evaluation.cluster),
                ("answers", f"greedy, at most {suite['max_new_tokens']} tokens{sampled}"),
                *(("warning", warning) for warning in evaluation.warnings),
            ]
        )
    )
    put()
    columns = (
        "MODEL",
        "STATUS",
        "N",
        "MEAN [95 %]",
        "UNREAD",
        "PASS@K",
        f"{evaluation.model} AGAINST IT",
        "P",
        "VERDICT",
    )
    rows = [_row(evaluation.model, evaluation.status, evaluation.results, None)]
    rows += [_row(other.model, other.status, other.results, other.comparison) for other in evaluation.others]
    put(table(columns, rows, whole=5))
    for other in evaluation.others:
        if other.comparison is not None:
            put(Text(other.comparison.sentence), soft_wrap=True)


def _row(
    model: str, state: str, results: EvaluationResults | None, compared: EvaluationComparison | None
) -> tuple[str | Text, ...]:
    difference, p, verdict = "", "", Text("")
    if compared is not None:
        low, high = 100 * compared.low, 100 * compared.high
        difference = f"{100 * compared.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
        p, verdict = p_value(compared.p_value), shown_status(compared.verdict)
    if results is None:
        return model, shown_status(state), "-", "-", "-", "-", difference, p, verdict
    passed = "-" if results.pass_at_k is None else percent(results.pass_at_k)
    counts = str(results.n), _mean(results), str(results.parse_failures), passed
    return model, shown_status(state), *counts, difference, p, verdict


def _mean(results: EvaluationResults | None) -> str:
    if results is None:
        return "-"
    return interval(Accuracy(mean=results.mean, low=results.low, high=results.high, n=results.n))
