"""``zhub experts promote``, ``rollback``, ``demote``, ``aliases`` and ``moves``: which version is the one to use."""

from typing import Annotated

import typer

from zhub.cli import protected_aliases
from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, table
from zhub.client.wire.lifecycle import AliasRequestRecord


def aliases(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the aliases and the versions that they point to."""
    with connect(data_dir) as client:
        all_aliases = client.aliases.list()
    if as_json:
        return show_json(all_aliases)
    put(
        table(
            ("ALIAS", "VERSION", "MOVED"),
            [(alias.id, alias.version or "-", moment(alias.moved_at)) for alias in all_aliases],
            whole=2,
        )
    )


def moves(alias: str, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show every move of an alias (project.expert@prod), newest first."""
    with connect(data_dir) as client:
        record = client.aliases.get(alias)
    if as_json:
        return show_json(record)
    rows = [
        (moment(move.created_at), move.origin or "-", move.to or "-", move.by, move.reason or "")
        for move in record.moves
    ]
    put(table(("AT", "FROM", "TO", "BY", "BECAUSE"), rows, whole=4))


def promote(
    version: Annotated[str, typer.Argument(help="An expert version (project.expert@v1).")],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "prod",
    reason: Annotated[str | None, typer.Option(help="The reason, kept in the alias's history.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias to a version without a gate: the first time, to roll back, or to overrule a gate."""
    with connect(data_dir) as client:
        moved = client.aliases.move(f"{version.partition('@')[0]}@{alias}", version, reason=reason)
    if as_json:
        return show_json(moved)
    if isinstance(moved, AliasRequestRecord):
        return note(protected_aliases.told(moved))
    note(f"{moved.id} points to {moved.version}.")


def rollback(
    alias: Annotated[str, typer.Argument(help="An alias (project.expert@prod, or of a release).")],
    reason: Annotated[str | None, typer.Option(help="The reason, kept in the alias's history.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias to the version that it pointed to before; again, to the one before that. No approval is needed."""
    with connect(data_dir) as client:
        moved = client.aliases.roll_back(alias, reason=reason)
    if as_json:
        return show_json(moved)
    note(f"{moved.id} points to {moved.version} again.")


def demote(
    alias: Annotated[str, typer.Argument(help="An alias (project.expert@prod).")], data_dir: DataDirOption = None
) -> None:
    """Remove an alias: without @prod, `auto` does not choose the expert any more."""
    with connect(data_dir) as client:
        client.aliases.remove(alias)
    note(f"{alias} points to nothing now.")
