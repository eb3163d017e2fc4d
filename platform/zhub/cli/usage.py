"""``zhub usage``."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.costs import CsvOption, print_csv
from zhub.cli.listings import parse_since
from zhub.cli.output import note, put, table

COUNTS = ("num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")
GROUPS = {"model": "model", "project": "project_id", "key": "api_key_id"}


class Group(StrEnum):
    """What usage is divided by. No ``Literal``: typer takes none in a list."""

    MODEL = "model"
    PROJECT = "project"
    KEY = "key"


def usage(
    since: Annotated[
        int, typer.Option(parser=parse_since, metavar="SPAN|DATE", help="From when on: 12h, 7d, or a date.")
    ] = "7d",  # type: ignore[assignment]  # typer parses it
    by: Annotated[
        list[Group] | None,
        typer.Option(help="Divide by model, project or key; may be repeated.", show_default="model"),
    ] = None,
    width: Annotated[Literal["1h", "1d"], typer.Option("--per", help="By the hour, or by the day.")] = "1d",
    as_csv: CsvOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens that your organisation's requests of models came to."""
    groups = by or [Group.MODEL]
    began = datetime.fromtimestamp(since, UTC).replace(minute=0, second=0)
    if width == "1d":
        began = began.replace(hour=0)
    with connect(data_dir) as client:
        buckets = client.usage(int(began.timestamp()), width, [GROUPS[group] for group in groups])
    if as_json:
        return typer.echo(json.dumps(buckets, indent=2, ensure_ascii=False))
    if as_csv:
        named = [*(GROUPS[group] for group in groups), *COUNTS]
        return print_csv(["from", *named], _values(buckets, named))
    rows = [row for bucket in buckets for row in _rows(bucket, groups, width)]
    if not rows:
        return note("No request of a model was answered in this time.")
    columns = ["FROM (UTC)", *(group.upper() for group in groups), "REQUESTS", "READ", "OF THESE CACHED", "WRITTEN"]
    put(table(columns, rows, whole=1))


def _values(buckets: Iterable[dict[str, Any]], named: Sequence[str]) -> Iterable[list[Any]]:
    for bucket in buckets:
        began = datetime.fromtimestamp(bucket["start_time"], UTC).isoformat()
        yield from ([began, *(result[name] for name in named)] for result in bucket["results"])


def _rows(bucket: dict[str, Any], groups: list[Group], width: str) -> list[list[str]]:
    began = datetime.fromtimestamp(bucket["start_time"], UTC).strftime(
        "%Y-%m-%d" if width == "1d" else "%Y-%m-%d %H:00"
    )
    return [
        [began, *(str(result[GROUPS[group]]) for group in groups), *(f"{result[name]:,}" for name in COUNTS)]
        for result in bucket["results"]
    ]
