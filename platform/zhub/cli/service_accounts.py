"""``zhub service-accounts``."""

from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, table
from zhub.cli.people_options import LastsOption, ProjectOption, ScopeOption, show_new_key

app = typer.Typer(help="Service accounts: members of a project that are programs.", no_args_is_help=True)

AccountArgument = Annotated[
    str, typer.Argument(metavar="ACCOUNT", help="svc-…, as `zhub service-accounts ls` shows it.")
]


@app.command()
def ls(project: ProjectOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the project's service accounts, newest first."""
    with connect(data_dir) as client:
        records = client.service_accounts.list(project)
    if as_json:
        return show_json(records)
    rows = [(record.id, record.name, record.role, moment(record.created_at)) for record in records]
    put(table(("ID", "NAME", "ROLE", "SINCE"), rows, whole=2))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people.")],
    role: Annotated[str, typer.Option(help="admin, developer or viewer.")] = "developer",
    lasts: LastsOption = None,
    project: ProjectOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a service account with a key, which is shown only now."""
    with connect(data_dir) as client:
        made = client.service_accounts.create(name, role=role, project=project, lasts_s=lasts)
    if as_json:
        return show_json(made)
    assert made.api_key is not None
    show_new_key(made.api_key)
    note(f"{made.id} is {made.role}.")


@app.command()
def key(
    account: AccountArgument,
    name: Annotated[str, typer.Option(help="A name for people.")] = "key",
    scope: ScopeOption = None,
    lasts: LastsOption = None,
    project: ProjectOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make another key of a service account, which is shown only now."""
    with connect(data_dir) as client:
        made = client.service_accounts.create_key(account, name, project=project, scopes=scope, lasts_s=lasts)
    if as_json:
        return show_json(made)
    show_new_key(made)


@app.command()
def role(
    account: AccountArgument,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="admin, developer or viewer.")],
    project: ProjectOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a service account another role. It holds for all its keys at once."""
    with connect(data_dir) as client:
        changed = client.service_accounts.set_role(account, role, project=project)
    if as_json:
        return show_json(changed)
    note(f"{changed.name} is {changed.role}.")


@app.command()
def rm(account: AccountArgument, project: ProjectOption = None, data_dir: DataDirOption = None) -> None:
    """Delete a service account, which ends all its keys at once."""
    with connect(data_dir) as client:
        client.service_accounts.delete(account, project=project)
    note(f"{account} is deleted.")
