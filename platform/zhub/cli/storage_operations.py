"""What the commands of ``zhub storage`` do. Each imports this module when it runs: it imports SQLAlchemy and boto3."""

from datetime import timedelta
from pathlib import Path

import typer

from zhub.cli.database_operations import system_engine, system_url
from zhub.cli.exits import ERROR
from zhub.cli.output import note, size
from zhub.client.credentials import default_data_dir
from zhub.embedded.data_dir import DataDir
from zhub.objects.collection import collect
from zhub.objects.verification import verify
from zhub.storage.listed import StoredObject
from zhub.storage.object_store import ObjectStore, open_store


def store_of(store_url: str | None, data_dir: Path | None) -> ObjectStore:
    """The store that was given, or that of the data directory."""
    if store_url is not None:
        return open_store(store_url)
    directory = (data_dir or default_data_dir()).expanduser().absolute()
    return open_store(DataDir(directory).objects.as_uri())


def collect_objects(
    url: str | None, store_url: str | None, data_dir: Path | None, *, grace_hours: float, dry_run: bool
) -> None:
    def show(listed: StoredObject, removed: bool) -> None:
        what = "removed" if removed else "unnamed"
        typer.echo(f"{what}  {listed.size_bytes:>15,}  {listed.modified_at:%Y-%m-%d %H:%M}  {listed.key}")

    store = store_of(store_url, data_dir)
    with system_engine(system_url(url, data_dir)) as engine:
        found = collect(engine, store, grace=timedelta(hours=grace_hours), dry_run=dry_run, on_unnamed=show)
    note(f"{found.objects:,} objects, of which no row names {found.unnamed:,} ({size(found.unnamed_bytes)}).")
    if found.unknown:
        note(f"{found.unknown:,} keys are none of this release's, or bases; they stay.")
    if dry_run:
        note("Nothing was changed; without --dry-run they are removed.")
    else:
        note(f"{found.removed:,} were removed ({size(found.removed_bytes)}).")


def verify_objects(url: str | None, store_url: str | None, data_dir: Path | None, *, deep: bool) -> None:
    store = store_of(store_url, data_dir)
    with system_engine(system_url(url, data_dir)) as engine:
        found = verify(engine, store, deep=deep)
    for lost in found.lost:
        typer.echo(f"lost  {lost.named.owner}  {lost.named.key}: {lost.why}")
    for word, names in (
        ("answers nothing until its files are restored", found.marked),
        ("is whole again", found.whole_again),
    ):
        for name in names:
            note(f"{name} {word}.")
    read = "were read" if deep else "are there in their sizes; --deep reads them"
    note(f"{found.objects:,} objects ({size(found.size_bytes)}) {read}; {len(found.lost):,} are lost.")
    if found.lost:
        raise typer.Exit(ERROR)
