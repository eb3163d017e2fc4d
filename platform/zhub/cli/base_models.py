"""``zhub base-models``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, moment, note, show_json, status, stderr, stdout, table
from zhub.client import Client
from zhub.errors import InvalidRequestError
from zhub.model_directory import ModelFiles
from zhub.wire import BaseModelRecord

app = typer.Typer(help="Base models: frozen weights that experts adapt.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What requests will call it.")],
    source: Annotated[str, typer.Argument(help="A Hugging Face directory, or OWNER/MODEL@COMMIT of the hub.")],
    chat_template: Annotated[Path | None, typer.Option(help="A Jinja file, for models without a template.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is decomposed.")] = True,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a base model and decompose it."""
    with connect(data_dir) as client:
        hub_id, at, revision = source.partition("@")
        if not at or Path(source).exists():
            base = _add_directory(client, name, Path(source), chat_template)
        elif chat_template is not None:
            raise InvalidRequestError("--chat-template goes with a directory; a hub model brings its own template.")
        else:
            base = client.base_models.add_hub(name, hub_id, revision)
        if wait:
            with stderr().status(f"{name}: {base.status}") as spinner:
                base = client.base_models.wait_ready(name, progress=lambda b: spinner.update(f"{name}: {b.status}"))
        _show(base, as_json)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the base models."""
    with connect(data_dir) as client:
        found = client.base_models.list()
    if as_json:
        return show_json(found)
    rows = [
        (base.id, status(base.status), "default" if base.is_default else "", moment(base.created_at), base.error or "")
        for base in found
    ]
    stdout().print(table(("NAME", "STATUS", "", "ADDED", "ERROR"), rows, whole=2))


@app.command()
def show(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one base model."""
    with connect(data_dir) as client:
        _show(client.base_models.get(name), as_json)


def _add_directory(client: Client, name: str, path: Path, chat_template: Path | None) -> BaseModelRecord:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=stderr(), transient=True) as bars:
        tasks = {}

        def started(files: ModelFiles) -> None:
            if files.skipped:
                note(f"Not part of a model, so not uploaded: {', '.join(files.skipped)}.")
            for path in files.uploads.values():
                tasks[path.name] = bars.add_task(path.name, total=path.stat().st_size)

        def progress(filename: str, sent_bytes: int) -> None:
            bars.update(tasks[filename], completed=sent_bytes)

        return client.base_models.add_directory(
            name, path, chat_template=chat_template, started=started, progress=progress
        )


def _show(base: BaseModelRecord, as_json: bool) -> None:
    if as_json:
        return show_json(base)
    source = f"{base.hub_id}@{base.hub_revision}" if base.hub_id else ", ".join(base.files)
    stdout().print(
        facts(
            [
                ("name", base.id + (" (default)" if base.is_default else "")),
                ("status", status(base.status)),
                *([("error", base.error)] if base.error else []),
                ("added", moment(base.created_at)),
                ("source", source),
                ("weights", base.weights_fingerprint or "-"),
                ("basis", base.basis_fingerprint or "-"),
                *[(name, str(value)) for name, value in (base.details or {}).items()],
            ]
        )
    )
