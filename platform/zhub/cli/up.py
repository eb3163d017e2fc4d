"""``zhub up``."""

import os
import sys
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption
from zhub.client.credentials import default_data_dir


def up(
    data_dir: DataDirOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the API listens.")] = 8460,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in; there is no TLS.")] = "127.0.0.1",
) -> None:
    """Start zhub on this machine: database, API, scheduler, Ray and a base model. Ctrl-C stops it."""
    directory = data_dir or default_data_dir()
    arguments = ["--data-dir", str(directory), "--port", str(port), "--host", host]
    # In our place, so that signals reach the supervisor, and without its imports in every other command.
    os.execv(sys.executable, [sys.executable, "-m", "zhub.embedded", *arguments])
