"""``zhub experts protect``, ``requests``, ``approve`` and what goes with them: aliases that need a second person."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import moment, note, put, show_json, status, table
from zhub.client.wire.lifecycle import AliasRequestRecord

AliasArgument = Annotated[str, typer.Argument(help="The name of an alias, as prod; of experts and releases alike.")]
RequestArgument = Annotated[str, typer.Argument(help="The request (areq-…), see `zhub experts requests`.")]
ReasonOption = Annotated[str | None, typer.Option(help="Why.")]


def protect(
    alias: AliasArgument,
    hours: Annotated[int, typer.Option(min=1, help="How long a request for a move waits for its approval.")] = 168,
    data_dir: DataDirOption = None,
) -> None:
    """Protect an alias in the project: each move of it is a request that a second person approves."""
    with connect(data_dir) as client:
        client.alias_requests.protect(alias, hours=hours)
    note(f"@{alias} is protected: each move of it waits for somebody else's approval, at most {hours} h.")


def unprotect(alias: AliasArgument, data_dir: DataDirOption = None) -> None:
    """Let an alias move at once again."""
    with connect(data_dir) as client:
        client.alias_requests.unprotect(alias)
    note(f"@{alias} moves at once.")


def protected(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the aliases that are protected in the project."""
    with connect(data_dir) as client:
        listed = client.alias_requests.protected()
    if as_json:
        return show_json(listed)
    rows = [(f"@{one.id}", f"{one.request_hours} h", one.by, moment(one.created_at)) for one in listed]
    put(table(("ALIAS", "REQUESTS WAIT", "PROTECTED BY", "SINCE"), rows, whole=1))


def requests(
    status: Annotated[
        Literal["open", "approved", "rejected", "withdrawn", "expired"] | None,
        typer.Option(help="Only those of this status.", show_default="all"),
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the moves of protected aliases that were asked for, newest first."""
    with connect(data_dir) as client:
        listed = client.alias_requests.list(status=status)
    if as_json:
        return show_json(listed)
    show_requests(listed)


def approve(
    request: RequestArgument, reason: ReasonOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Approve the move of a protected alias that somebody else asked for: it happens at once."""
    _decide(request, "approve", reason, data_dir, as_json)


def reject(
    request: RequestArgument, reason: ReasonOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Reject the move of a protected alias."""
    _decide(request, "reject", reason, data_dir, as_json)


def withdraw(
    request: RequestArgument, reason: ReasonOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Withdraw the move of a protected alias that you asked for."""
    _decide(request, "withdraw", reason, data_dir, as_json)


def show_requests(listed: list[AliasRequestRecord]) -> None:
    rows = [
        (
            request.id,
            request.alias,
            request.version + (f" ({request.share:.0%})" if request.share else ""),
            request.person,
            status(request.status),
            request.decided_by or "-",
            moment(request.created_at),
        )
        for request in listed
    ]
    put(table(("REQUEST", "ALIAS", "TO", "ASKED BY", "STATUS", "DECIDED BY", "AT"), rows, whole=3))


def told(request: AliasRequestRecord) -> str:
    """What became of a move that was asked for."""
    return (
        f"{request.alias} is protected: {request.id} waits until {moment(request.expires_at)} for the approval of "
        f"somebody other than {request.person} (`zhub experts approve {request.id}`)."
    )


def _decide(request: str, decision: str, reason: str | None, data_dir: Path | None, as_json: bool) -> None:
    with connect(data_dir) as client:
        decided = client.alias_requests.decide(request, decision, reason=reason)
    if as_json:
        return show_json(decided)
    note(
        f"{decided.alias} points to {decided.version}."
        if decided.status == "approved"
        else f"{decided.id} is {decided.status}."
    )
