"""Options and tables that the commands on people, keys and projects share."""

import re
from typing import Annotated

import typer

from zhub.cli.output import facts, moment, put
from zhub.client.wire.administration import InvitationRecord, KeyRecord

SPANS_S = {"m": 60, "h": 3600, "d": 86_400}
MAX_DAYS = 3650


def parse_span(text: str) -> int:
    """Seconds of ``90m``, ``12h`` or ``30d``."""
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if match is None or not 0 < (span_s := int(match[1]) * SPANS_S[match[2]]) <= MAX_DAYS * SPANS_S["d"]:
        raise typer.BadParameter(f"expected 90m, 12h or 30d, at most {MAX_DAYS}d; found '{text}'")
    return span_s


ProjectOption = Annotated[
    str | None, typer.Option("--project", metavar="NAME", help="Of which project.", show_default="the key's own")
]
ScopeOption = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="SCOPE", help="A right of the key; may be repeated.", show_default="all of yours"),
]
LastsOption = Annotated[
    int | None,
    typer.Option("--lasts", metavar="SPAN", parser=parse_span, help="90m, 12h, 30d.", show_default="for ever"),
]


def show_new_key(key: KeyRecord) -> None:
    """The key itself, which is shown only now."""
    ends = "never" if key.expires_at is None else moment(key.expires_at)
    put(facts([("id", key.id), ("name", key.name), ("expires", ends), ("key", key.value or "-")]))


def show_invitation(invitation: InvitationRecord) -> None:
    put(
        facts(
            [
                ("id", invitation.id),
                ("email", invitation.email),
                ("role", invitation.role),
                ("expires", moment(invitation.expires_at)),
                ("token", invitation.token or "-"),
            ]
        )
    )
