"""``zhub experts push`` and ``import``."""

from pathlib import Path
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import INTERRUPTED, JOB_FAILED
from zhub.cli.output import note, show_json
from zhub.client import Client
from zhub.client.wire.experts import ImportRecord
from zhub.manifest import Origin


def push(
    name: Annotated[str, typer.Argument(help="The expert that gets the version, without the project.")],
    directory: Annotated[Path, typer.Argument(help="A LoRA that PEFT saved, or a version that was pulled.")],
    base: Annotated[str, typer.Option(help="The base model that it was made on.")],
    dataset: Annotated[
        str | None,
        typer.Option(metavar="FILE-ID", help="A file whose prompts are the expert's, so that `auto` can choose it."),
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Which workers try it.", show_default="default")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import an expert that was made elsewhere: it is checked and tried, and becomes a version.

    Without --dataset an imported LoRA answers by its name only: nothing says which prompts are its own.
    """
    with connect(data_dir) as client:
        record = client.imports.create(name, directory, base=base, dataset=dataset, cluster=cluster)
        record = _follow(client, record)
    _show(record, as_json)


def import_file(
    file: Annotated[Path, typer.Argument(help="What `zhub experts export --format zhub` has written.")],
    name: Annotated[
        str | None, typer.Option(help="The expert that gets the version.", show_default="as it was called")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model that it was made on.", show_default="the one with its basis")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Which workers try it.", show_default="default")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import a version that was exported as one file: it must fit the base, and answer as it did there."""
    with connect(data_dir) as client:
        record = client.imports.create_from_file(file, name=name, base=base, cluster=cluster)
        record = _follow(client, record)
    _show(record, as_json)


def _follow(client: Client, record: ImportRecord) -> ImportRecord:
    note(f"{record.id}: {record.base_check}")
    try:
        return client.imports.wait_ended(record.id)
    except KeyboardInterrupt:
        note(f"{record.id} goes on. {client.imports.reason(record.id)} `zhub experts ls` will have its version.")
        raise typer.Exit(INTERRUPTED) from None


def _show(record: ImportRecord, as_json: bool) -> None:
    if as_json:
        show_json(record)
    if record.version is None:
        note(f"error: {record.error['message']}" if record.error else f"The import was {record.status}.")
        raise typer.Exit(JOB_FAILED)
    if not as_json:
        _tell(record)
        typer.echo(record.version.id)


def origin_facts(origin: Origin) -> list[tuple[str, str]]:
    """Where an imported version comes from, in rows of facts."""
    made_by = {"peft": "PEFT", "zhub": "another zhub"}[origin.format]
    return [
        ("imported", f"made by {made_by}, by {origin.imported_by}"),
        ("its base", origin.base_check),
        ("probe", origin.probe.sentence),
    ]


def _tell(record: ImportRecord) -> None:
    assert record.version is not None and record.version.origin is not None
    note(record.version.origin.probe.sentence)
    if not any(file["name"].startswith("routing") for file in record.version.manifest["files"]):
        note("It answers by its name only: no dataset says which prompts are its own, so `auto` never chooses it.")
