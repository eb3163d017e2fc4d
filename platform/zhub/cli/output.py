"""How the command line shows things: tables and JSON on standard output, progress and errors on standard error."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from zhub.cli.commands_for_routes import with_commands
from zhub.errors import ApiError
from zhub.manifest import Accuracy

BLOCKS = "▁▂▃▄▅▆▇█"
PIPE_WIDTH = 10_000  # a pipe has no width: nothing is cut or folded for it
STYLES = {
    "ready": "green",
    "processed": "green",
    "succeeded": "green",
    "running": "cyan",
    "decomposing": "cyan",
    "error": "red",
    "failed": "red",
    "cancelled": "yellow",
    "paused": "yellow",
    "active": "green",
    "fired": "green",
    "promoted": "green",
    "not promoted": "yellow",
    "refused": "red",
    "enabled": "green",
    "disabled": "red",
    "delivered": "green",
    "pending": "cyan",
    "better": "green",
    "worse": "red",
    "gained": "green",
    "lost": "red",
}


def put(*parts: RenderableType, soft_wrap: bool = False) -> None:
    """Print on standard output; a pipe gets lines that are neither cut nor padded."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(*parts, soft_wrap=soft_wrap)
        return
    endless = Console(highlight=False, width=PIPE_WIDTH)
    with endless.capture() as captured:
        endless.print(*parts)
    typer.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def show_error(error: Exception) -> None:
    remedy = ""
    if isinstance(error, ApiError) and error.status == 401:
        remedy = " Check ZHUB_API_KEY, or credentials.json in the data directory."
    stderr().print(Text.assemble(("error: ", "bold red"), f"{with_commands(str(error))}{remedy}"), soft_wrap=True)


def note(message: str) -> None:
    """Print a message for people, on standard error."""
    stderr().print(Text(message), soft_wrap=True)


def show_json(value: BaseModel | Iterable[BaseModel]) -> None:
    plain: Any = (
        value.model_dump(mode="json", by_alias=True)
        if isinstance(value, BaseModel)
        else [v.model_dump(mode="json", by_alias=True) for v in value]
    )
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, whole: int = 0) -> Table:
    """A table without lines; the first ``whole`` columns are never folded."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, no_wrap=index < whole, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def facts(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, one pair a line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, value)
    return made


def status(word: str) -> Text:
    return Text(word, STYLES.get(word, ""))


def moment(seconds: float) -> str:
    """A point in time in the local time zone, with how far that is from UTC."""
    return datetime.fromtimestamp(int(seconds)).astimezone().isoformat(" ")


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def size(size_bytes: int) -> str:
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def money(value: float, currency: str) -> str:
    """An amount with cents, or with two digits where it is less than one."""
    shown = f"{value:,.2f}" if value >= 0.01 or value == 0 else f"{Decimal(f'{value:.2g}'):f}"
    return f"{shown} {currency.upper()}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def interval(accuracy: Accuracy) -> str:
    """A mean with its 95 % interval, in percent."""
    return f"{percent(accuracy.mean)} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def p_value(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def sparkline(values: Sequence[float], *, width: int = 40) -> str:
    """The last ``width`` values as blocks between 0 and 1, or the largest value if that is more."""
    top = max([1.0, *values])
    return "".join(BLOCKS[round(max(0.0, value) / top * (len(BLOCKS) - 1))] for value in values[-width:])
