"""``zhub costs``."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.listings import parse_since
from zhub.cli.output import money, note, put, table


class Group(StrEnum):
    """What costs are divided by. No ``Literal``: typer takes none in a list."""

    LINE = "line"
    PROJECT = "project"
    EXPERT = "expert"
    KEY = "key"
    BASE = "base"


GROUPS = {
    Group.LINE: "line_item",
    Group.PROJECT: "project_id",
    Group.EXPERT: "expert",
    Group.KEY: "api_key_id",
    Group.BASE: "base_model",
}
UNITS = {"duration_hours": "hours", "gibibyte_hours": "GiB-hours"}
CsvOption = Annotated[bool, typer.Option("--csv", help="Print comma-separated values, with a line of names.")]


def costs(
    since: Annotated[
        int, typer.Option(parser=parse_since, metavar="SPAN|DATE", help="From which day on: 7d, 4w, or a date.")
    ] = "7d",  # type: ignore[assignment]  # typer parses it
    by: Annotated[
        list[Group] | None,
        typer.Option(help="Divide by line, project, expert, key or base; may be repeated.", show_default="line"),
    ] = None,
    as_csv: CsvOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what your organisation has used, day by day, and what it costs by the platform's prices."""
    groups = by or [Group.LINE]
    began = datetime.fromtimestamp(since, UTC).replace(hour=0, minute=0, second=0)
    with connect(data_dir) as client:
        buckets = client.costs(int(began.timestamp()), [GROUPS[group] for group in groups])
        budgets = [] if as_json or as_csv else client.limits()["budgets"]
    if as_json:
        return typer.echo(json.dumps(buckets, indent=2, ensure_ascii=False))
    results = [(day(bucket["start_time"]), result) for bucket in buckets for result in bucket["results"]]
    if as_csv:
        return print_csv(_columns(groups, ["amount", "currency", "unpriced"]), _values(results, groups))
    for use in budgets:
        shown = "{:.3g}" if use["unit"] == "worker-hours" else "{:,.2f}"
        used, budget = shown.format(use["used"]), shown.format(use["budget"])
        note(f"Of this month's budget, {budget} {use['unit']}, {used} are used.")
    if not results:
        return note("Nothing was used in this time.")
    quantity = ["QUANTITY"] if Group.LINE in groups else []
    columns = ["DAY (UTC)", *(group.upper() for group in groups), *quantity, "COST"]
    put(table(columns, [_row(began_on, result, groups) for began_on, result in results], whole=1))
    _note_total([result for _, result in results])


def day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for other programs: UTF-8, RFC 4180, nothing rounded."""
    writer = csv.writer(sys.stdout)
    writer.writerow(columns)
    writer.writerows(rows)


def _columns(groups: Sequence[Group], rest: Sequence[str]) -> list[str]:
    quantity = ["quantity", "quantity_unit"] if Group.LINE in groups else []
    return ["day", *(GROUPS[group] for group in groups), *quantity, *rest]


def _values(results: Iterable[tuple[str, dict[str, Any]]], groups: Sequence[Group]) -> Iterable[list[Any]]:
    for began_on, result in results:
        amount = result["amount"] or {"value": "", "currency": ""}
        told = amount["value"], amount["currency"].upper(), "; ".join(result["unpriced"])
        named = [result[name] for name in _columns(groups, ())[1:]]
        yield [began_on, *("" if value is None else value for value in named), *told]


def _row(began_on: str, result: dict[str, Any], groups: Sequence[Group]) -> list[str]:
    quantity = []
    if Group.LINE in groups:
        unit = UNITS.get(result["quantity_unit"], result["quantity_unit"])
        quantity = [f"{result['quantity']:,.4g} {unit}" if unit != "tokens" else f"{result['quantity']:,.0f} tokens"]
    amount = result["amount"]
    shown = money(amount["value"], amount["currency"]) if amount else "no price"
    if amount and result["unpriced"]:
        shown += " and more"
    return [began_on, *(result[GROUPS[group]] or "-" for group in groups), *quantity, shown]


def _note_total(results: Sequence[dict[str, Any]]) -> None:
    amounts = [result["amount"] for result in results if result["amount"]]
    if amounts:
        note(f"In all {money(sum(amount['value'] for amount in amounts), amounts[0]['currency'])}.")
    unpriced = dict.fromkeys(name for result in results for name in result["unpriced"])
    if unpriced:
        note(
            f"Without a price, and so in no cost: {'; '.join(unpriced)}. The platform's operator sets prices "
            "(`zhub db prices set`)."
        )
