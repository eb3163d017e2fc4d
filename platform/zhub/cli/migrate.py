"""``zhub migrate``."""

from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption


def migrate(
    to: Annotated[str, typer.Option(metavar="URL", help="PostgreSQL, as the owner of an empty database.")],
    to_store: Annotated[str, typer.Option(metavar="URL", help="The object store: s3://bucket/prefix?endpoint_url=….")],
    data_dir: DataDirOption = None,
) -> None:
    """Move the zhub of this machine to a production database and object store. Stop `zhub up` first.

    What it has stays. Broken off, it goes on where it was; at the end every object is read and compared.
    """
    # Imported when it runs, because it imports SQLAlchemy, which `--help` must not wait for.
    from zhub.cli.migrate_operations import move

    move(data_dir, to, to_store)
