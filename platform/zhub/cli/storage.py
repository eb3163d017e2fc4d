"""``zhub storage``: the object store, seen by the operator."""

from typing import Annotated

import typer

from zhub.cli.connection import DatabaseUrlOption, DataDirOption

app = typer.Typer(help="The object store: what it has that nothing names, and what it has lost.", no_args_is_help=True)

StoreUrlOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="ZHUB_STORE_URL",
        help="The object store: s3://bucket/prefix?endpoint_url=… or file:///directory.",
        show_default="the store of the local zhub",
    ),
]


@app.command()
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="Leave alone what was stored, and jobs that ended, more lately.")
    ] = 24,
    store: StoreUrlOption = None,
    url: DatabaseUrlOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove objects that no row names: what broken uploads and failed jobs have left, and deleted files.

    Safe while zhub runs. What this release does not know stays.
    """
    # Imported within each command, because it imports SQLAlchemy, which `--help` must not wait for.
    from zhub.cli import storage_operations

    storage_operations.collect_objects(url, store, data_dir, grace_hours=grace_hours, dry_run=dry_run)


@app.command()
def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read every object, and compare its digest.")] = False,
    store: StoreUrlOption = None,
    url: DatabaseUrlOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Look for every object that a version, a dataset or a base has; name the lost, and mark their versions.

    A marked version answers nothing; once its file is restored, another run unmarks it. Exits with 1 if one is lost.
    """
    from zhub.cli import storage_operations

    storage_operations.verify_objects(url, store, data_dir, deep=deep)
