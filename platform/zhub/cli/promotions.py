"""``zhub promotions``."""

from typing import Annotated, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import JOB_FAILED
from zhub.cli.output import facts, moment, note, put, show_json, status, table
from zhub.cli.submit import GraderOption, MeasuringClusterOption, read_grader
from zhub.cli.uploads import uploading
from zhub.client.wire.lifecycle import PromotionRecord

app = typer.Typer(help="Promotions: a version gets an alias if it passes its gate.", no_args_is_help=True)


@app.command()
def create(
    model: Annotated[str, typer.Argument(help="A version of an expert or of a release (project.name@v1).")],
    dataset: Annotated[str, typer.Argument(help="What to measure on: a data file, or the id of one (file-…).")],
    grader: GraderOption = None,
    alias: Annotated[str, typer.Option(help="The alias that the version gets if it passes.")] = "prod",
    rule: Annotated[
        Literal["not_worse", "better"],
        typer.Option(help="Compared with the version that the alias points to, beyond the noise."),
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
    with connect(data_dir) as client, uploading(client) as uploads:
        suite = {
            "file": uploads.file_id(dataset, purpose="evals"),
            "grader": read_grader(grader),
            "min_mean": min_mean,
        }
        gate = {"alias": alias, "rule": rule, "suites": [suite], "cluster": cluster}
        promotion = client.promotions.create(model=model, gate=gate)
        uploads.keep()
        if wait:
            note(f"Waiting for {promotion.id}.")
            promotion = client.promotions.wait_ended(promotion.id)
        else:
            note(f"`zhub promotions show {promotion.id}` shows what was decided.")
    show_promotion(promotion, as_json)
    if wait and not promotion.promoted:
        raise typer.Exit(JOB_FAILED)


@app.command()
def ls(
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default="all")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the promotions, newest first."""
    with connect(data_dir) as client:
        promotions = client.promotions.list(limit=limit)
    if as_json:
        return show_json(promotions)
    rows = [
        (
            promotion.id,
            promotion.model or promotion.training_job or "-",
            f"@{promotion.alias}",
            status(outcome(promotion)),
            moment(promotion.created_at),
        )
        for promotion in promotions
    ]
    put(table(("ID", "VERSION", "ALIAS", "OUTCOME", "CREATED"), rows, whole=2))


@app.command()
def show(promotion_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one promotion, and why its gate decided as it did."""
    with connect(data_dir) as client:
        show_promotion(client.promotions.get(promotion_id), as_json)


@app.command()
def cancel(promotion_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Cancel a promotion; the alias stays where it is."""
    with connect(data_dir) as client:
        show_promotion(client.promotions.cancel(promotion_id), as_json)


def outcome(promotion: PromotionRecord) -> str:
    """The decision, or the status while there is none."""
    if promotion.promoted is None:
        return promotion.status
    if promotion.approval is not None and not promotion.promoted:
        return f"asks for approval: {promotion.approval}"
    return "promoted" if promotion.promoted else "not promoted"


def show_promotion(promotion: PromotionRecord, as_json: bool) -> None:
    if as_json:
        return show_json(promotion)
    files = ", ".join(suite["file"] for suite in promotion.gate["suites"])
    put(
        facts(
            [
                ("id", promotion.id),
                ("version", promotion.model or f"what {promotion.training_job} will publish"),
                ("alias", f"@{promotion.alias}"),
                ("gate", f"{promotion.gate['rule'].replace('_', ' ')}, on {files}"),
                ("outcome", status(outcome(promotion))),
                *([("error", str(promotion.error["message"]))] if promotion.error else []),
                *(
                    (f"{finding.file}, {'passed' if finding.passed else 'not passed'}", sentence)
                    for finding in promotion.findings or []
                    for sentence in finding.sentences
                ),
            ]
        )
    )
