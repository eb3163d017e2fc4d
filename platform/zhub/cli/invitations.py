"""``zhub invitations``."""

import os
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, status, table
from zhub.cli.people_options import show_invitation, show_new_key
from zhub.client import Client
from zhub.client.credentials import api_address

app = typer.Typer(help="Invitations: how somebody becomes a member.", no_args_is_help=True)


def parse_project_role(text: str) -> tuple[str, str]:
    name, equals, role = text.partition("=")
    if not name or not equals or not role:
        raise typer.BadParameter(f"expected PROJECT=ROLE, as in maths=developer; found '{text}'")
    return name, role


@app.command()
def send(
    email: Annotated[str, typer.Argument(help="Whom to invite.")],
    role: Annotated[
        str, typer.Option(help="In the organisation: owner, admin, developer, viewer; member: in projects alone.")
    ] = "member",
    project: Annotated[
        list[str] | None,
        typer.Option(metavar="PROJECT=ROLE", help="A role in a project: admin, developer, viewer; may be repeated."),
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Invite somebody. Shows the token by which they accept, which is shown only now: zhub sends no mail."""
    projects = dict(parse_project_role(text) for text in project or [])
    with connect(data_dir) as client:
        invitation = client.invitations.send(email, role, projects)
    if as_json:
        return show_json(invitation)
    show_invitation(invitation)
    note(f"Give the token to {email}, who becomes a member by `zhub invitations accept TOKEN`.")


@app.command()
def ls(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the invitations that were not taken back, newest first."""
    with connect(data_dir) as client:
        records = client.invitations.list()
    if as_json:
        return show_json(records)
    rows = [
        (record.id, status(record.status), record.email, record.role, record.invited_by, moment(record.expires_at))
        for record in records
    ]
    put(table(("ID", "STATUS", "EMAIL", "ROLE", "BY", "EXPIRES"), rows, whole=3))


@app.command()
def rm(
    invitation: Annotated[str, typer.Argument(metavar="INVITATION", help="invite-…, as `zhub invitations ls` shows.")],
    data_dir: DataDirOption = None,
) -> None:
    """Take an invitation back that was not accepted yet."""
    with connect(data_dir) as client:
        client.invitations.revoke(invitation)
    note(f"{invitation} is taken back.")


@app.command()
def accept(
    token: Annotated[str, typer.Argument(help="What who invited you has given you.")],
    name: Annotated[str, typer.Option(prompt="Your name", help="How you are called.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Become a member. Needs no key, but ZHUB_API_URL. Shows your first key, which is shown only now."""
    with Client(api_address(data_dir, os.environ), None) as client:
        accepted = client.accept_invitation(token, name)
    if as_json:
        return show_json(accepted)
    show_new_key(accepted.api_key)
    note(f"You are {accepted.user.role} as {accepted.user.email}. Keep the key, e.g. as ZHUB_API_KEY.")
