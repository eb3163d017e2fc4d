"""``zhub keys``."""

from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, table
from zhub.cli.people_options import LastsOption, ProjectOption, ScopeOption, parse_span, show_new_key
from zhub.client.wire.administration import KeyRecord

app = typer.Typer(help="API keys: of a project, or of the organisation itself.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="key-…, as `zhub keys ls` shows it.")]
AdminOption = Annotated[
    bool, typer.Option("--admin", help="The organisation's own keys, which manage it and reach no data.")
]


@app.command()
def ls(
    project: ProjectOption = None,
    admin: AdminOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, newest first, without their secrets."""
    with connect(data_dir) as client:
        records = client.keys.list(project, admin=admin)
    if as_json:
        return show_json(records)
    rows = [
        (
            record.id,
            record.redacted_value or "-",
            record.name,
            _owner(record),
            "never" if record.last_used_at is None else moment(record.last_used_at),
            _ends(record),
        )
        for record in records
    ]
    put(table(("ID", "KEY", "NAME", "OWNER", "LAST USED", "EXPIRES"), rows, whole=2))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people.")],
    scope: ScopeOption = None,
    lasts: LastsOption = None,
    project: ProjectOption = None,
    admin: AdminOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key of your own. It is shown only now, and does what you may do at any time, or less."""
    if admin and scope:
        raise typer.BadParameter("the rights of an organisation's key are given: it manages", param_hint="--scope")
    with connect(data_dir) as client:
        made = client.keys.create(name, project=project, scopes=scope, lasts_s=lasts, admin=admin)
    if as_json:
        return show_json(made)
    show_new_key(made)


@app.command()
def rotate(
    key: KeyArgument,
    grace: Annotated[
        int | None,
        typer.Option(metavar="SPAN", parser=parse_span, help="How long the old key is still valid.", show_default="1d"),
    ] = None,
    leaked: Annotated[bool, typer.Option("--leaked", help="Refuse the old key at once.")] = False,
    project: ProjectOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key in the place of another, with its name, owner, rights and expiry. It is shown only now."""
    with connect(data_dir) as client:
        made = client.keys.rotate(key, project=project, grace_s=0 if leaked else grace)
    if as_json:
        return show_json(made)
    show_new_key(made)


@app.command()
def revoke(
    key: KeyArgument, project: ProjectOption = None, admin: AdminOption = False, data_dir: DataDirOption = None
) -> None:
    """Refuse a key from now on, everywhere."""
    with connect(data_dir) as client:
        client.keys.revoke(key, project=project, admin=admin)
    note(f"{key} is revoked.")


def _owner(key: KeyRecord) -> str:
    owner = key.owner or {}
    about = owner.get("user") or owner.get("service_account") or owner
    return str(about.get("email") or about.get("name") or f"the {owner.get('type')}")


def _ends(key: KeyRecord) -> str:
    ends = "never" if key.expires_at is None else moment(key.expires_at)
    return ends if key.successor is None else f"{ends}; rotated to {key.successor}"
