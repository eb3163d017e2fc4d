"""``zhub graders``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import ERROR
from zhub.cli.output import facts, note, put, show_json
from zhub.cli.submit import read_json
from zhub.client.wire.graders import GraderRun
from zhub.errors import InvalidRequestError

app = typer.Typer(help="Graders: functions that turn an answer into a reward.", no_args_is_help=True)

GraderArgument = Annotated[Path, typer.Argument(metavar="GRADER", help="A JSON file with a grader.")]


@app.command()
def validate(grader: GraderArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Check all of a grader that can be checked without a dataset. With --json it is shown with its defaults."""
    with connect(data_dir) as client:
        checked = client.graders.validate(read_json(grader, "grader"))
    if as_json:
        return typer.echo(json.dumps(checked, indent=2, ensure_ascii=False))
    note(f"{grader}: the {checked['type']} grader '{checked['name']}' is right as far as can be seen without rows.")


@app.command()
def run(
    grader: GraderArgument,
    sample: Annotated[str, typer.Option(help="The answer to grade; - reads it from standard input.")],
    item: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|FILE", help="The row's columns: a JSON object, or a JSONL file.", show_default="no columns"
        ),
    ] = None,
    line: Annotated[int, typer.Option(min=1, help="Which line of that file.")] = 1,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grade one answer. Exits with 1 if the grader failed."""
    columns = {} if item is None else read_item(item, line)
    answer = sys.stdin.read() if sample == "-" else sample
    with connect(data_dir) as client:
        graded = client.graders.run(read_json(grader, "grader"), answer, columns)
    show_json(graded) if as_json else show_run(graded)
    if graded.failures:
        raise typer.Exit(ERROR)


def read_item(text: str, line: int) -> dict[str, Any]:
    """The columns of a row: a JSON object, or the one on this line of a file.

    Raises:
        InvalidRequestError: neither is there.
    """
    source = "--item"
    if not text.lstrip().startswith("{"):
        source, text = f"{text}, line {line}", _line_of(Path(text), line)
    try:
        item = json.loads(text)
    except ValueError as exc:
        raise InvalidRequestError(f"{source}: expected a JSON object with the row's columns: {exc}.") from exc
    if not isinstance(item, dict):
        raise InvalidRequestError(f"{source}: expected a JSON object with the row's columns.")
    return item


def _line_of(path: Path, line: int) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if number == line:
                    return text
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(f"{path}: the row cannot be read: {exc}.") from exc
    raise InvalidRequestError(f"{path} has no line {line}.")


def show_run(graded: GraderRun) -> None:
    details = graded.metadata
    failed = {name: details.errors.get(f"{name}_details") for name in graded.failures}
    put(
        facts(
            [
                ("reward", f"{graded.reward:g}"),
                *((name, f"{reward:g}") for name, reward in graded.sub_rewards.items()),
                ("grader", f"{details.type} '{details.name}'"),
                *([("because", details.detail)] if details.detail else []),
                *((name.replace("_", " "), str(said or "yes")) for name, said in failed.items()),
                ("took", f"{details.execution_time:.3f} s"),
            ]
        )
    )
