"""``zhub datasets``."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, moment, note, put, show_json, size, status, table
from zhub.cli.uploads import (
    AnswerColumnOption,
    PromptColumnOption,
    PromptTemplateOption,
    SkipIncompleteOption,
    Uploads,
    show_conversion,
)
from zhub.client import Client
from zhub.client.wire.completions import Provenance
from zhub.client.wire.training import DatasetFile
from zhub.datasets.conversion.converting import as_rows
from zhub.datasets.conversion.mapping import ChosenColumns
from zhub.demo.task_families import FAMILIES, sample_rows
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError
from zhub.suggestions import did_you_mean

# Every family has so many different prompts.
MAX_SAMPLED_ROWS = 5000
MAX_HELD_OUT_ROWS = 1000

REFERENCE = "A dataset's name, one of its versions (name@v2), or the id of a file (file-…)."
VERSION = re.compile(r"(?P<name>.+)@v(?P<version>[0-9]{1,9})")

MethodOption = Annotated[
    Literal["reinforcement", "supervised", "dpo"] | None,
    typer.Option(
        help="What will train on it: supervised learns the answers, reinforcement keeps them for its grader.",
        show_default="as reinforcement; dialogues stay whole",
    ),
]

app = typer.Typer(help="Datasets: rows, each checked before anything trains on them.", no_args_is_help=True)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="A data file; one of the same name becomes its dataset's next version.")],
    method: MethodOption = None,
    prompt_column: PromptColumnOption = None,
    answer_column: AnswerColumnOption = None,
    prompt_template: PromptTemplateOption = None,
    skip_incomplete: SkipIncompleteOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a data file and check its rows. CSV, TSV, Parquet and JSON become rows on this machine, also from gzip."""
    chosen = ChosenColumns(prompt_column, answer_column, prompt_template)
    with connect(data_dir) as client:
        file = Uploads(client).push(
            path, purpose="fine-tune", method=method, chosen=chosen, skip_incomplete=skip_incomplete
        )
        _show(file, as_json)


@app.command()
def from_completions(
    name: Annotated[str, typer.Argument(help="The dataset: this becomes its next version, or its first.")],
    where: Annotated[
        str,
        typer.Option(
            help="Which stored completions, as in 'model:main.sums@prod rating:up since:7d metadata.team:a'.",
            show_default="all",
        ),
    ] = "",
    method: Annotated[
        Literal["reinforcement", "supervised", "dpo"],
        typer.Option(help="What will train on it: the answer is the last message, a column, or preferred."),
    ] = "supervised",
    max_rows: Annotated[int | None, typer.Option(min=1, help="The newest ones are taken, so many at most.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a dataset of stored completions, and check its rows. `zhub completions` has them."""
    with connect(data_dir) as client:
        made = client.completions.make_dataset(name, where=where, method=method, max_rows=max_rows)
        assert made.file is not None and made.provenance is not None
        note(_origin(made.provenance))
        _show(client.files.wait_processed(made.file), as_json)


@app.command()
def convert(
    path: Annotated[Path, typer.Argument(help="CSV, TSV, Parquet, JSON or JSON Lines, also compressed by gzip.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the rows.", show_default="only show them")
    ] = None,
    method: MethodOption = None,
    prompt_column: PromptColumnOption = None,
    answer_column: AnswerColumnOption = None,
    prompt_template: PromptTemplateOption = None,
    skip_incomplete: SkipIncompleteOption = False,
) -> None:
    """Make rows of a data file, or show how they would look. Nothing is uploaded."""
    chosen = ChosenColumns(prompt_column, answer_column, prompt_template)
    if output is not None and output.exists():
        raise ConflictError(f"{output} exists already. Remove it, or choose another file.")
    with as_rows(path, chosen=chosen, method=method, skip_incomplete=skip_incomplete) as rows:
        if rows.conversion is not None:
            show_conversion(path.name, rows.conversion)
        else:
            note(f"{path.name} is JSON Lines: its rows stay as they are.")
        if output is not None:
            _copy(rows.path, output)
            note(f"The rows are in {output}.")


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
def ls(
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="Only files with this text in their name.")] = None,
    sort: Annotated[Literal["newest", "oldest", "name", "rows", "size"], typer.Option()] = "newest",
    limit: Annotated[int | None, typer.Option(min=1, help="How many.", show_default="all")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the dataset files."""
    with connect(data_dir) as client:
        # Only the newest are known before all have come.
        files = client.files.list(search=search, limit=limit if sort == "newest" else None)
    files = _sorted(files, sort)[:limit]
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
def show(
    dataset: Annotated[str, typer.Argument(help=REFERENCE)], data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Show one dataset file and the result of its check."""
    with connect(data_dir) as client:
        _show(_versions(client, dataset)[0], as_json)


@app.command()
def pull(
    dataset: Annotated[str, typer.Argument(help=REFERENCE)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.", show_default="the file's name")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a dataset file, every byte checked against its digest."""
    with connect(data_dir) as client:
        file = _versions(client, dataset)[0]
        # A name from elsewhere must not lead out of this directory.
        target = output or Path(Path(file.filename).name)
        client.files.pull(file.id, target)
    note(f"{file.filename} v{file.version} is in {target.absolute()}; its digest matches.")
    if as_json:
        show_json(file)
    else:
        typer.echo(str(target.absolute()))


@app.command()
def rm(
    dataset: Annotated[str, typer.Argument(help=REFERENCE)],
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Every version of the dataset.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what published versions were trained on; jobs keep what they need.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Cancel the jobs and gates that need it, and pause its schedules.")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Delete a dataset file. One that a version, a job, a gate or a schedule needs is refused, by its name."""
    with connect(data_dir) as client:
        versions = _versions(client, dataset)
        if len(versions) > 1 and not all_versions:
            names = ", ".join(f"{file.dataset}@v{file.version}" for file in versions[:10])
            raise ConflictError(
                f"'{dataset}' has {len(versions)} versions: {names}{' …' if len(versions) > 10 else ''}. Name one of "
                "them, or give --all-versions."
            )
        for file in versions:
            client.files.delete(file.id, force=force, detach=detach)
            note(f"Deleted {file.filename} v{file.version} ({file.id}).")


def _versions(client: Client, reference: str) -> list[DatasetFile]:
    """The files that a reference names, newest first: one by its id or version, or all of a dataset.

    Raises:
        NotFoundError: none; with the names that look alike.
    """
    if reference.startswith("file-"):
        return [client.files.get(reference)]
    name, version = reference, None
    if match := VERSION.fullmatch(reference):
        name, version = match["name"], int(match["version"])
    files = client.files.list()
    of_name = [file for file in files if name in (file.dataset, file.filename)]
    versions = [file for file in of_name if version in (None, file.version)]
    if not versions:
        hint = "" if of_name else did_you_mean(name, {file.dataset for file in files})
        raise NotFoundError("dataset", reference, f"{hint} `zhub datasets ls` lists them.".strip())
    return versions


def _sorted(files: Sequence[DatasetFile], sort: str) -> list[DatasetFile]:
    keys: dict[str, Callable[[DatasetFile], Any]] = {
        "name": lambda file: (file.filename.casefold(), -file.version),
        "rows": lambda file: -(file.validation or {}).get("rows", 0),
        "size": lambda file: -file.bytes,
    }
    if sort in keys:
        return sorted(files, key=keys[sort])
    return list(files) if sort == "newest" else list(reversed(files))


def _copy(rows: Path, target: Path) -> None:
    try:
        shutil.copyfile(rows, target)
    except OSError as exc:
        raise InvalidRequestError(f"{target} cannot be written: {exc.strerror}.") from exc


def _rows(file: DatasetFile) -> str:
    return f"{file.validation['rows']:,}" if file.validation else "-"


def _origin(made_of: Provenance) -> str:
    more = ", the newest of more" if made_of.cut else ""
    left_out = f"; {made_of.left_out:,} that are no rows are left out" if made_of.left_out else ""
    span = f"stored from {made_of.oldest_at[:16]} to {made_of.newest_at[:16]} UTC"
    return f"{made_of.rows:,} completions{more}, {span}{left_out}."


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
                *([("classifies", ", ".join(known.model for known in file.classifies))] if file.classifies else []),
                *([("made of", _origin(file.completions))] if file.completions else []),
                *([("where", file.completions.where or "all")] if file.completions else []),
                *([("duplicates", f"{validation['duplicate_count']:,}")] if validation.get("duplicate_count") else []),
            ]
        )
    )
