"""``zhub experts verify``, ``keys`` and ``rotate-key``: the signatures of versions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import note, put, show_json, table
from zhub.client import offline
from zhub.errors import ZhubError

KEYS_FILE = "keys.json"


def verify(
    subject: Annotated[
        str, typer.Argument(help="A version (project.expert@v1); or a directory that `zhub experts pull` made.")
    ],
    keys: Annotated[
        Path | None,
        typer.Option(
            help="Of a directory: the public keys, as `zhub experts keys --json` prints them.",
            show_default=f"{KEYS_FILE} in it",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify who published a version and that nobody changed it: of a directory without any server, else on the server.

    On the server its files in the store are looked at, and what is wrong is marked on the version.
    """
    if Path(subject).is_dir():
        return _verify_offline(Path(subject), keys, as_json)
    with connect(data_dir) as client:
        verified = client.experts.verify(subject)
    if as_json:
        show_json(verified)
    else:
        put(table(("FILE", "STATE"), [(file.name, file.state) for file in verified.files], whole=1))
        for problem in verified.problems:
            note(problem)
        if verified.verified:
            note(f"{verified.id} is signed by its organisation, and all its files are what was signed.")
    if not verified.verified:
        raise typer.Exit(1)


def keys(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the public keys of the organisation, the one in use first. With --json: what `verify --keys` reads."""
    with connect(data_dir) as client:
        listed = client.experts.signing_keys()
    if as_json:
        return show_json(listed)
    rows = [(key.key_id, "retired at " + str(key.retired_at) if key.retired_at else "in use") for key in listed]
    put(table(("KEY", "STATE"), rows, whole=2))


def rotate_key(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Sign with a new key from now on; the old one still verifies what was published before."""
    with connect(data_dir) as client:
        key = client.experts.rotate_signing_key()
    if as_json:
        return show_json(key)
    note(f"What is published from now on is signed with the key {key.key_id}.")


def _verify_offline(directory: Path, keys_path: Path | None, as_json: bool) -> None:
    path = keys_path or directory / KEYS_FILE
    if not path.is_file():
        raise typer.BadParameter(
            f"{path} is not there: save the public keys of the publisher with `zhub experts keys --json > {path}`."
        )
    try:
        signed = offline.verify(directory, offline.read_keys(path))
    except ZhubError as exc:
        note(str(exc))
        raise typer.Exit(1) from exc
    if as_json:
        return typer.echo(json.dumps(signed, indent=2))
    ran = signed["predicate"]["runDetails"]["metadata"]
    note(
        f"{directory} is what was published at {ran['finishedOn']} by {ran['invocationId']}: "
        f"{len(signed['subject'])} files, all signed and unchanged."
    )
