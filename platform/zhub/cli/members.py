"""``zhub members``."""

from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, table

app = typer.Typer(
    help="Members: who is in the organisation, or with --project in a project, and as what.", no_args_is_help=True
)

EmailArgument = Annotated[str, typer.Argument(metavar="EMAIL", help="Whose.")]
RoleArgument = Annotated[
    str, typer.Argument(metavar="ROLE", help="owner, admin, developer, viewer, or member; in a project the middle 3.")
]
InProjectOption = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME", help="In a project.", show_default="in the organisation"),
]


@app.command()
def ls(project: InProjectOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the members. A role in the organisation holds in all its projects, and is listed with it alone."""
    with connect(data_dir) as client:
        records = client.members.list(project)
    if as_json:
        return show_json(records)
    rows = [(record.email, record.role, record.name, moment(record.added_at)) for record in records]
    put(table(("EMAIL", "ROLE", "NAME", "SINCE"), rows, whole=2))


@app.command()
def add(
    email: EmailArgument,
    role: RoleArgument,
    project: Annotated[str, typer.Option(metavar="NAME", help="In which project.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give somebody of the organisation a role in a project. Others: `zhub invitations send`."""
    with connect(data_dir) as client:
        member = client.members.add(email, role, project=project)
    if as_json:
        return show_json(member)
    note(f"{member.email} is {member.role} in {project}.")


@app.command()
def role(
    email: EmailArgument,
    role: RoleArgument,
    project: InProjectOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a member another role. It holds for all their keys at once."""
    with connect(data_dir) as client:
        member = client.members.set_role(email, role, project=project)
    if as_json:
        return show_json(member)
    note(f"{member.email} is {member.role}{f' in {project}' if project else ''}.")


@app.command()
def rm(email: EmailArgument, project: InProjectOption = None, data_dir: DataDirOption = None) -> None:
    """Remove a member from the organisation, which ends all their keys at once; or from a project."""
    with connect(data_dir) as client:
        client.members.remove(email, project=project)
    note(f"{email} is no longer a member{f' of {project}' if project else ''}.")
