"""``zhub grants``."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, table
from zhub.client.wire.grants import GrantRecord

app = typer.Typer(help="What is shared with other organisations, and what they share.", no_args_is_help=True)

ExpiresOption = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="Until when, in UTC.", show_default="until it is revoked"
    ),
]


@app.command()
def give(
    expert: Annotated[str, typer.Argument(help="An expert (project.expert), or a version of it (project.expert@v1).")],
    organization: Annotated[str, typer.Argument(help="The name of the other organisation.")],
    permission: Annotated[
        Literal["view", "use", "fork", "manage"],
        typer.Option(
            "--permission", "-p", help="Each with those before it; fork: train from it; manage: move aliases."
        ),
    ] = "use",
    project: Annotated[str | None, typer.Option(metavar="PROJ-ID", help="For one project of it alone.")] = None,
    expires: ExpiresOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let another organisation view, use, fork or manage an expert; in place of the grant that it has."""
    with connect(data_dir) as client:
        grant = client.grants.give(expert, organization, permission, project=project, expires_at=_seconds(expires))
    _show(grant, as_json, f"{grant.grantee} may '{grant.permission}' {grant.expert}")


@app.command()
def ask(
    expert: Annotated[str, typer.Argument(help="Another organisation's expert (organisation.project.expert).")],
    permission: Annotated[Literal["use", "fork", "manage"], typer.Option("--permission", "-p")] = "use",
    message: Annotated[str | None, typer.Option("--message", "-m", help="Why.")] = None,
    for_project: Annotated[bool, typer.Option("--for-project", help="For this key's project alone.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the owner of an expert for access."""
    with connect(data_dir) as client:
        grant = client.grants.ask(expert, permission, message=message, for_project=for_project)
    _show(grant, as_json, f"{grant.id} asks to '{grant.permission}' {grant.expert}")


@app.command()
def approve(
    grant_id: str,
    permission: Annotated[
        Literal["view", "use", "fork", "manage"] | None,
        typer.Option("--permission", "-p", show_default="what was asked for"),
    ] = None,
    expires: ExpiresOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a request for access."""
    with connect(data_dir) as client:
        grant = client.grants.decide(grant_id, approve=True, permission=permission, expires_at=_seconds(expires))
    _show(grant, as_json, f"{grant.grantee} may '{grant.permission}' {grant.expert}")


@app.command()
def deny(grant_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Deny a request for access."""
    with connect(data_dir) as client:
        grant = client.grants.decide(grant_id, approve=False)
    _show(grant, as_json, f"{grant.id} is denied")


@app.command()
def rm(grant_id: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Revoke a grant that this project gave, or give up one that it received. Running answers end within seconds."""
    with connect(data_dir) as client:
        grant = client.grants.end(grant_id)
    _show(grant, as_json, f"{grant.id} is {grant.status}")


@app.command()
def ls(
    received: Annotated[bool, typer.Option("--received", help="What others grant to this project.")] = False,
    status: Annotated[
        Literal["requested", "active", "denied", "revoked", "withdrawn"] | None, typer.Option(help="Only these.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the grants and requests, newest first."""
    with connect(data_dir) as client:
        grants = list(client.grants.list("received" if received else "given", status=status))
    if as_json:
        return show_json(grants)
    rows = [
        (
            grant.id,
            grant.expert,
            grant.grantee,
            grant.permission,
            grant.status,
            "-" if grant.expires_at is None else moment(grant.expires_at),
            grant.message or "",
        )
        for grant in grants
    ]
    put(table(("ID", "EXPERT", "FOR", "MAY", "STATUS", "UNTIL", "BECAUSE"), rows, whole=2))


@app.command()
def visibility(
    expert: Annotated[str, typer.Argument(help="An expert (project.expert).")],
    to: Annotated[Literal["private", "organization", "granted", "public"], typer.Argument(help="Who sees it.")],
    data_dir: DataDirOption = None,
) -> None:
    """Say who sees an expert without a grant: its project, its organisation, everybody (granted: to ask for it)."""
    with connect(data_dir) as client:
        note(f"{expert} is {client.grants.set_visibility(expert, to)}.")


@app.command()
def usage(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show what other organisations have used of this project's experts."""
    with connect(data_dir) as client:
        used = list(client.grants.usage())
    if as_json:
        return show_json(used)
    rows = [
        (one.model, one.organization, f"{one.requests:,}", f"{one.prompt_tokens:,}", f"{one.completion_tokens:,}")
        for one in used
    ]
    put(table(("VERSION", "USED BY", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS"), rows, whole=1))


def _show(grant: GrantRecord, as_json: bool, done: str) -> None:
    if as_json:
        return show_json(grant)
    until = "" if grant.expires_at is None else f" until {moment(grant.expires_at)}"
    note(f"{done}{until}.")
    typer.echo(grant.id)


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.replace(tzinfo=UTC).timestamp())
