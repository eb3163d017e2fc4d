"""``zhub db prices``: the price list of an installation."""

from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

import typer

from zhub.cli.connection import DatabaseUrlOption, DataDirOption, JsonOption

app = typer.Typer(help="The price list, which costs are computed by.", no_args_is_help=False)

ItemArgument = Annotated[
    Literal["worker-hours", "input-tokens", "cached-input-tokens", "output-tokens", "storage"],
    typer.Argument(help="What costs: an hour of a worker, a million tokens, or a GiB stored for a month."),
]


def parse_amount(text: str) -> Decimal:
    """A number in decimal digits, exactly."""
    try:
        return Decimal(text)
    except InvalidOperation as exc:
        raise typer.BadParameter(f"expected a number as in 2.50, found '{text}'") from exc


@app.callback(invoke_without_command=True)
def ls(
    context: typer.Context, url: DatabaseUrlOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List the prices, also those that no longer hold or do not hold yet. `set` appends one."""
    if context.invoked_subcommand is not None:
        return
    # Imported within each command, because it imports SQLAlchemy, which `--help` must not wait for.
    from zhub.cli import database_operations

    database_operations.list_prices(database_operations.system_url(url, data_dir), as_json=as_json)


@app.command("set")
def add(
    item: ItemArgument,
    amount: Annotated[Decimal, typer.Argument(parser=parse_amount, metavar="AMOUNT", help="As in 2.50; 0 is free.")],
    subject: Annotated[
        str, typer.Option("--for", help="Only of this cluster, or this base.", show_default="all without their own")
    ] = "",
    currency: Annotated[
        str | None, typer.Option(help="ISO 4217, as in EUR: with the first price, for all.", show_default="the list's")
    ] = None,
    valid_from: Annotated[
        datetime | None,
        typer.Option(
            "--from",
            formats=["%Y-%m-%d"],
            help="The first day (UTC) that it holds.",
            show_default="today for an item without a price, else tomorrow",
        ),
    ] = None,
    url: DatabaseUrlOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Append a price to the list. What past days have cost never changes by it."""
    from zhub.cli import database_operations

    begins: date | None = valid_from.date() if valid_from else None
    system_url = database_operations.system_url(url, data_dir)
    database_operations.set_price(
        system_url, item.replace("-", "_"), amount, subject=subject, currency=currency, valid_from=begins
    )
