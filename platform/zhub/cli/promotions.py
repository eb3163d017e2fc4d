"""``zhub promotions``."""

from typing import Annotated, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import JOB_FAILED
from zhub.cli.output import facts, moment, note, put, show_json, status, table
from zhub.cli.submit import GraderOption, MeasuringClusterOption, file_id, read_grader
from zhub.client.wire import PromotionRecord

app = typer.Typer(help="Promotions: a version gets an alias if it passes its gate.", no_args_is_help=True)


@app.command()
def create(
    model: Annotated[str, typer.Argument(help="An expert version (project.expert@v1).")],
    dataset: Annotated[str, typer.Argument(help="What to measure on: a JSONL file, or the id of one (file-…).")],
    grader: GraderOption = None,
    alias: Annotated[str, typer.Option(help="The alias that the version shall get.")] = "prod",
    rule: Annotated[
        Literal["not_worse", "better"], typer.Option(help="Than the alias's version, beyond the noise.")
    ] = "not_worse",
    min_mean: Annotated[float | None, typer.Option(help="The mean reward that the version must reach.")] = None,
    cluster: MeasuringClusterOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the decision; exit with 7 if it does not pass.")
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a version against the one that the alias points to, and promote it if it passes."""
    with connect(data_dir) as client:
        suite = {
            "file": file_id(client, dataset),
            "grader": read_grader(grader),
            "min_mean": min_mean,
        }
        gate = {"alias": alias, "rule": rule, "suites": [suite], "cluster": cluster}
        found = client.promotions.create(model=model, gate=gate)
        if wait:
            note(f"Waiting for {found.id}.")
            found = client.promotions.wait_ended(found.id)
        else:
            note(f"`zhub promotions show {found.id}` shows what was decided.")
    show_promotion(found, as_json)
    if wait and not found.promoted:
        raise typer.Exit(JOB_FAILED)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the promotions, newest first."""
    with connect(data_dir) as client:
        found = client.promotions.list()
    if as_json:
        return show_json(found)
    rows = [
        (one.id, one.model or one.training_job or "-", f"@{one.alias}", status(outcome(one)), moment(one.created_at))
        for one in found
    ]
    put(table(("ID", "VERSION", "ALIAS", "OUTCOME", "CREATED"), rows, whole=2))


@app.command()
def show(promotion_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one promotion, and why its gate decided as it did."""
    with connect(data_dir) as client:
        show_promotion(client.promotions.get(promotion_id), as_json)


@app.command()
def cancel(promotion_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Let the alias stay where it is."""
    with connect(data_dir) as client:
        show_promotion(client.promotions.cancel(promotion_id), as_json)


def outcome(found: PromotionRecord) -> str:
    """The status in one word: what was decided, where something was."""
    if found.promoted is None:
        return found.status
    return "promoted" if found.promoted else "not promoted"


def show_promotion(found: PromotionRecord, as_json: bool) -> None:
    if as_json:
        return show_json(found)
    files = ", ".join(suite["file"] for suite in found.gate["suites"])
    put(
        facts(
            [
                ("id", found.id),
                ("version", found.model or f"what {found.training_job} will publish"),
                ("alias", f"@{found.alias}"),
                ("gate", f"{found.gate['rule'].replace('_', ' ')}, on {files}"),
                ("outcome", status(outcome(found))),
                *([("error", str(found.error["message"]))] if found.error else []),
                *(
                    (f"{finding.file}, {'passed' if finding.passed else 'not passed'}", sentence)
                    for finding in found.findings or []
                    for sentence in finding.sentences
                ),
            ]
        )
    )
