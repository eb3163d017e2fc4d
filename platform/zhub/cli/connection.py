"""Which zhub a command talks to, and the options that all such commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

from zhub.client import Client
from zhub.client.credentials import find_credentials

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="ZHUB_DATA_DIR",
        help="Data directory of the local zhub. ZHUB_API_URL and ZHUB_API_KEY win over it.",
        show_default="the user's data directory",
    ),
]
DatabaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="ZHUB_DATABASE_URL",
        help="PostgreSQL, as a login that is a member of zhub_system.",
        show_default="the database of the local zhub",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def connect(data_dir: Path | None) -> Client:
    """A client of the zhub that the environment names, that somebody logged in to, or of the local one.

    Asks nothing yet.
    """
    credentials = find_credentials(data_dir, os.environ)
    return Client(credentials.base_url, credentials.api_key)
