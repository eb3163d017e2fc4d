"""``zhub datasets``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, moment, note, put, show_json, size, status, stderr, table
from zhub.client import Client
from zhub.client.wire.training import DatasetFile
from zhub.demo.task_families import FAMILIES, sample_rows

# Every family has so many different prompts.
MAX_SAMPLED_ROWS = 5000
MAX_HELD_OUT_ROWS = 1000

app = typer.Typer(
    help="Datasets: JSONL files, checked row by row before anything trains on them.", no_args_is_help=True
)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="A JSONL file; a file of the same name becomes its next version.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a file and check its rows."""
    with connect(data_dir) as client:
        _show(push_file(client, path), as_json)


@app.command()
def sample(
    family: Annotated[str, typer.Argument(help=f"One of {', '.join(FAMILIES)}.")] = "sorting",
    rows: Annotated[
        int, typer.Option(min=1, max=MAX_SAMPLED_ROWS, help="How many; no two have the same prompt.")
    ] = 1500,
    seed: Annotated[int, typer.Option(help="Another seed draws other rows, of which some may be the same.")] = 1,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only prompts that no training on rows of this family learns from.")
    ] = False,
) -> None:
    """Print rows of a synthetic task that the shipped base model can be taught, as JSONL."""
    if family not in FAMILIES:
        raise typer.BadParameter(f"expected one of {', '.join(FAMILIES)}; found '{family}'", param_hint="FAMILY")
    if held_out and rows > MAX_HELD_OUT_ROWS:
        raise typer.BadParameter(f"expected at most {MAX_HELD_OUT_ROWS:,} held-out rows", param_hint="--rows")
    for row in sample_rows(family, rows, seed=seed, split="test" if held_out else None):
        typer.echo(json.dumps(row))


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the dataset files, newest first."""
    with connect(data_dir) as client:
        files = client.files.list()
    if as_json:
        return show_json(files)
    rows = [
        (
            file.id,
            f"{file.filename} v{file.version}",
            status(file.status),
            _rows(file),
            size(file.bytes),
            moment(file.created_at),
        )
        for file in files
    ]
    put(table(("ID", "FILE", "STATUS", "ROWS", "SIZE", "UPLOADED"), rows, whole=1))


@app.command()
def show(file_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one dataset file and the result of its check."""
    with connect(data_dir) as client:
        _show(client.files.get(file_id), as_json)


def push_file(client: Client, path: Path, *, purpose: str = "fine-tune") -> DatasetFile:
    """Upload a file and wait until its rows are checked. Only with the purpose ``fine-tune`` it is new data."""
    with stderr().status(f"{path.name}: uploading") as spinner:
        file = client.files.upload(path, purpose=purpose)
        spinner.update(f"{path.name}: its rows are being checked")
        checked = client.files.wait_processed(file.id)
    if repeated := (checked.validation or {}).get("duplicate_count"):
        note(f"{path.name}: {repeated:,} rows repeat others. They are used once; see the hyper-parameter 'duplicates'.")
    return checked


def _rows(file: DatasetFile) -> str:
    return f"{file.validation['rows']:,}" if file.validation else "-"


def _show(file: DatasetFile, as_json: bool) -> None:
    if as_json:
        return show_json(file)
    validation = file.validation or {}
    columns = ", ".join(f"{name} ({count:,})" for name, count in sorted(validation.get("columns", {}).items()))
    put(
        facts(
            [
                ("id", file.id),
                ("file", f"{file.filename}, version {file.version}, {size(file.bytes)}"),
                ("status", status(file.status)),
                *([("details", file.status_details)] if file.status_details else []),
                ("uploaded", moment(file.created_at)),
                ("sha256", file.sha256),
                ("rows", _rows(file)),
                ("columns", columns or "-"),
                *([("duplicates", f"{validation['duplicate_count']:,}")] if validation.get("duplicate_count") else []),
            ]
        )
    )
