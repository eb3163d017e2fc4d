"""What ``zhub migrate`` does."""

from pathlib import Path

import psycopg
import typer
from sqlalchemy.exc import ArgumentError, OperationalError

from zhub.cli.exits import ERROR
from zhub.cli.output import note, size
from zhub.client.credentials import default_data_dir
from zhub.database.migrate import check_at_head, upgrade
from zhub.database.sessions import make_engine
from zhub.embedded.data_dir import DataDir, locked
from zhub.embedded.moving import move_objects, move_tables
from zhub.embedded.postgres import postgres_alone
from zhub.errors import EmbeddedError, InvalidRequestError, UnavailableError
from zhub.objects.verification import verify
from zhub.storage.object_store import open_store

TOLD_EVERY = 1000  # objects


def move(data_dir: Path | None, to: str, to_store: str) -> None:
    """Objects first, rows second, so that no row of the target ever names an object that is not there.

    Raises:
        EmbeddedError: zhub runs on the data directory, or it is none.
        ConflictError: the target has rows of another zhub.
    """
    directory = DataDir((data_dir or default_data_dir()).expanduser().absolute())
    if not directory.lock.is_file():
        raise EmbeddedError(f"{directory.path}: no zhub has run there. Name its data directory with --data-dir.")
    source, target = open_store(directory.objects.as_uri()), open_store(to_store)
    with locked(directory, port=0), postgres_alone(directory.postgres, directory.logs / "migrate.log") as cluster:
        _check_at_head(cluster.urls().system)
        _upgrade(to)

        def tell(count: int, total: int, _is_sent: bool) -> None:
            if count % TOLD_EVERY == 0:
                note(f"{count:,} objects, {size(total)} …")

        count, total = move_objects(source, target, tell)
        note(f"{count:,} objects ({size(total)}) are in {to_store.partition('?')[0]}.")
        for table in move_tables(cluster.urls().system, to):
            how = "sent" if table.sent else "there already" if table.rows else "empty"
            typer.echo(f"{table.name:<28} {table.rows:>12,}  {how}")
        # Read by the source's rows, which are the target's: its owner is fenced off from these.
        engine = make_engine(cluster.urls().system, pool_size=1)
        try:
            found = verify(engine, target, deep=True)
        finally:
            engine.dispose()
    for lost in found.lost:
        typer.echo(f"lost  {lost.named.owner}  {lost.named.key}: {lost.why}")
    note(f"{found.objects:,} objects that rows name were read there; {len(found.lost):,} are lost.")
    if found.lost:
        raise typer.Exit(ERROR)
    note(
        f"Give API and scheduler the secret_key of {directory.secrets} as ZHUB_SECRET_KEY: API keys and webhooks "
        "depend on it. Then `zhub db logins` makes their logins."
    )


def _check_at_head(url: str) -> None:
    engine = make_engine(url, pool_size=1)
    try:
        check_at_head(engine)
    finally:
        engine.dispose()


def _upgrade(owner_url: str) -> None:
    try:
        upgrade(owner_url)
    except ArgumentError as exc:
        raise InvalidRequestError(f"--to: expected postgresql://…: {exc}") from exc
    except (OperationalError, psycopg.OperationalError) as exc:
        raise UnavailableError(f"The target does not answer: {exc}") from exc
