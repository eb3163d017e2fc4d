"""``zhub audit``."""

from typing import Annotated, Any, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.listings import SinceOption
from zhub.cli.output import moment, note, put, show_json, table
from zhub.client.audit import AuditQuery
from zhub.client.wire.administration import AuditRecord


def audit(
    action: Annotated[
        list[str] | None,
        typer.Option(metavar="ACTION", help="Only these, as in user.added; may be repeated.", show_default="all"),
    ] = None,
    by: Annotated[list[str] | None, typer.Option(metavar="EMAIL", help="Only what they did; may be repeated.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only what was done to this; may be repeated.")
    ] = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    export: Annotated[
        Literal["jsonl", "csv"] | None, typer.Option(help="Print all of it, oldest first, for a program.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who did what in your organisation, newest first."""
    wanted = AuditQuery(action or [], by or [], target or [], since)
    with connect(data_dir) as client:
        if export is not None:
            return typer.echo(client.audit.export(wanted, export), nl=False)
        records = client.audit.list(wanted, most=limit)
    if as_json:
        return show_json(records)
    if not records:
        return note("Nothing of this was done.")
    rows = [
        (moment(record.effective_at), str(record.actor["name"]), record.type, record.target, _change(record))
        for record in records
    ]
    put(table(("AT", "WHO", "WHAT", "ON", "CHANGE"), rows, whole=3))


def _change(record: AuditRecord) -> str:
    before, after = record.before or {}, record.after or {}
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    return ", ".join(_pair(name, before, after) for name in names)


def _pair(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    if name not in before:
        return f"{name}: {after[name]}"
    return f"{name}: {before[name]} -> {after.get(name, 'none')}"
