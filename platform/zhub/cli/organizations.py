"""``zhub organizations``: for operators."""

from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, status, table
from zhub.cli.people_options import show_invitation

app = typer.Typer(help="Organisations: make and suspend them. For operators.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="ORGANIZATION", help="Its name.")]


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List all organisations, newest first."""
    with connect(data_dir) as client:
        records = client.organizations.list()
    if as_json:
        return show_json(records)
    rows = [(record.name, status(record.status), moment(record.created_at), record.id) for record in records]
    put(table(("NAME", "STATUS", "SINCE", "ID"), rows, whole=1))


@app.command()
def create(
    name: NameArgument,
    owner: Annotated[str, typer.Option(metavar="EMAIL", help="Who is invited as its first owner.")],
    project: Annotated[str, typer.Option(metavar="NAME", help="Its first project.")] = "default",
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an organisation, and invite its owner. Shows the invitation's token, which is shown only now."""
    with connect(data_dir) as client:
        made = client.organizations.create(name, owner=owner, project=project)
    if as_json:
        return show_json(made)
    assert made.invitation is not None
    show_invitation(made.invitation)
    note(f"Give the token to {owner}, who becomes the owner by `zhub invitations accept TOKEN`.")


@app.command("invite-owner")
def invite_owner(
    name: NameArgument,
    email: Annotated[str, typer.Argument(help="Whom to invite.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Invite an owner into an organisation, where none of its own can."""
    with connect(data_dir) as client:
        invitation = client.organizations.invite_owner(name, email)
    if as_json:
        return show_json(invitation)
    show_invitation(invitation)
    note(f"Give the token to {email}, who becomes an owner by `zhub invitations accept TOKEN`.")


@app.command()
def suspend(name: NameArgument, data_dir: DataDirOption = None) -> None:
    """Refuse all keys of an organisation from now on. What it owns stays, and its jobs go on."""
    with connect(data_dir) as client:
        client.organizations.suspend(name)
    note(f"{name} is suspended; `zhub organizations resume {name}` ends that.")


@app.command()
def resume(name: NameArgument, data_dir: DataDirOption = None) -> None:
    """Accept the keys of a suspended organisation again."""
    with connect(data_dir) as client:
        client.organizations.resume(name)
    note(f"{name} is active.")
