"""``zhub projects``."""

from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, status, table

app = typer.Typer(help="Projects: where a team's datasets, jobs and experts are.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Its name.")]


@app.command()
def ls(
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones too.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the organisation's projects, newest first."""
    with connect(data_dir) as client:
        records = client.projects.list(archived=archived)
    if as_json:
        return show_json(records)
    rows = [(record.name, status(record.status), moment(record.created_at), record.id) for record in records]
    put(table(("NAME", "STATUS", "SINCE", "ID"), rows, whole=1))


@app.command()
def create(name: NameArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Make a project. Its name is part of the names of its experts, and stays."""
    with connect(data_dir) as client:
        made = client.projects.create(name)
    if as_json:
        return show_json(made)
    note(f"{made.name} is made; `zhub keys create NAME --project {made.name}` makes a key to it.")


@app.command()
def archive(name: NameArgument, data_dir: DataDirOption = None) -> None:
    """Refuse all keys of a project from now on. What it owns stays; no other project gets its name."""
    with connect(data_dir) as client:
        client.projects.archive(name)
    note(f"{name} is archived.")
