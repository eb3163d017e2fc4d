"""The options that the commands ``ls`` share."""

import re
import time
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

import typer

SPANS_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

ORDERS = {"newest": None, "oldest": "asc"}


class JobStatus(StrEnum):
    """As the API has them. No ``Literal``: typer takes none in a list."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


def parse_since(text: str) -> int:
    """Unix time of the beginning of a span until now (``90m``, ``12h``, ``7d``, ``2w``), or of an ISO date and time.

    Without a zone, a time is a local one.
    """
    if match := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return max(0, int(time.time()) - int(match[1]) * SPANS_S[match[2]])
    try:
        return max(0, int(datetime.fromisoformat(text).timestamp()))
    except (ValueError, OverflowError) as exc:
        raise typer.BadParameter(f"expected 90m, 12h, 7d, 2w, or a date as in 2026-01-31; found '{text}'") from exc


SearchOption = Annotated[
    str | None, typer.Option("--search", metavar="TEXT", help="Only those that mention this, in either case.")
]
SinceOption = Annotated[
    int | None,
    typer.Option(
        "--since", metavar="TIME", parser=parse_since, help="Only those made since: 90m, 12h, 7d, 2w ago, or a date."
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="How many at most.", show_default="all")]
SortOption = Annotated[Literal["newest", "oldest"], typer.Option("--sort", help="Which come first.")]
JobStatusOption = Annotated[
    list[JobStatus] | None, typer.Option("--status", "--state", help="Only those with this status; may be repeated.")
]
