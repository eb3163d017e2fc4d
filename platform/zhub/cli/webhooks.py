"""``zhub webhooks``."""

from typing import Annotated, Literal

import typer

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.exits import ERROR
from zhub.cli.listings import ORDERS, LimitOption, SearchOption, SortOption
from zhub.cli.output import facts, moment, note, put, show_json, status, table
from zhub.client.wire.webhooks import DeliveryRecord, EndpointRecord

app = typer.Typer(help="Webhooks: where a project's events are sent.", no_args_is_help=True)

EndpointArgument = Annotated[str, typer.Argument(metavar="ENDPOINT", help="whe-…, as `zhub webhooks ls` shows it.")]


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="Where to send them, by POST.")],
    event: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="An event type to send; may be repeated.", show_default="all of them"),
    ] = None,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send the project's events to a URL. Shows the secret that signs them, which is shown only now."""
    with connect(data_dir) as client:
        made = client.webhooks.create(url=url, event_types=event or client.webhooks.event_types(), name=name)
    show_secret(made, as_json)
    note(f"Give the secret to the receiver; `zhub webhooks test {made.id}` sends an example.")


@app.command()
def ls(
    only: Annotated[
        Literal["enabled", "disabled"] | None, typer.Option("--status", help="Only those with this status.")
    ] = None,
    search: SearchOption = None,
    sort: SortOption = "newest",
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the endpoints: all of them, or those that the options describe."""
    with connect(data_dir) as client:
        endpoints = client.webhooks.list(most=limit, status=only, search=search, order=ORDERS[sort])
    if as_json:
        return show_json(endpoints)
    rows = [
        (
            endpoint.id,
            status(endpoint.status),
            endpoint.url,
            endpoint.name or "-",
            ", ".join(endpoint.event_types),
            _why(endpoint),
        )
        for endpoint in endpoints
    ]
    put(table(("ID", "STATUS", "URL", "NAME", "EVENTS", "WHY"), rows, whole=2))


@app.command()
def rm(endpoint: EndpointArgument, data_dir: DataDirOption = None) -> None:
    """Remove an endpoint. Events that still wait for it are not sent."""
    with connect(data_dir) as client:
        client.webhooks.delete(endpoint)
    note(f"{endpoint} is removed.")


@app.command()
def enable(endpoint: EndpointArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Let a disabled endpoint get events again. What it missed can be replayed."""
    with connect(data_dir) as client:
        enabled = client.webhooks.enable(endpoint)
    if as_json:
        return show_json(enabled)
    note(f"{enabled.id} is {enabled.status}. `zhub webhooks deliveries {enabled.id}` shows what can be replayed.")


@app.command()
def rotate(
    endpoint: EndpointArgument,
    leaked: Annotated[bool, typer.Option("--leaked", help="Stop signing with the old secret at once.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new secret, which is shown only now. For a day the old secret signs as well."""
    with connect(data_dir) as client:
        made = client.webhooks.rotate_secret(endpoint, keep_old=not leaked)
    show_secret(made, as_json)


@app.command()
def deliveries(
    endpoint: EndpointArgument,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many to show.")] = 20,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the deliveries to an endpoint, newest first."""
    with connect(data_dir) as client:
        records = client.webhooks.deliveries(endpoint, limit=limit)
    if as_json:
        return show_json(records)
    rows = [
        (
            record.id,
            status(record.status),
            record.event_type,
            moment(record.created_at),
            str(len(record.attempts)),
            _last(record),
        )
        for record in records
    ]
    put(table(("ID", "STATUS", "EVENT", "AT", "TRIES", "LAST"), rows, whole=2))


@app.command()
def replay(
    endpoint: EndpointArgument,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="whd-…, as `zhub webhooks deliveries` shows it.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send an event again, under the same webhook-id, by which a receiver recognises it."""
    with connect(data_dir) as client:
        replayed = client.webhooks.replay(endpoint, delivery)
    if as_json:
        return show_json(replayed)
    note(f"{replayed.event_type} is sent again; `zhub webhooks deliveries {endpoint}` shows the result.")


@app.command()
def test(
    endpoint: EndpointArgument,
    event: Annotated[str, typer.Option(metavar="TYPE", help="What to send an example of.")] = (
        "fine_tuning.job.succeeded"
    ),
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send an example of an event, and show the receiver's answer. Exits with 1 if it was not accepted."""
    with connect(data_dir) as client:
        result = client.webhooks.test(endpoint, event)
    if as_json:
        show_json(result)
    else:
        answer = result.error or f"The receiver answered {result.status_code}."
        note(f"{result.event_type} was {'delivered' if result.success else 'not delivered'}. {answer}")
    if not result.success:
        raise typer.Exit(ERROR)


def show_secret(endpoint: EndpointRecord, as_json: bool) -> None:
    if as_json:
        return show_json(endpoint)
    put(
        facts(
            [
                ("id", endpoint.id),
                ("url", endpoint.url),
                ("events", ", ".join(endpoint.event_types)),
                ("secret", endpoint.signing_secret or "-"),
            ]
        )
    )


def _why(endpoint: EndpointRecord) -> str:
    if endpoint.status_details is None and endpoint.not_before is not None:
        return f"Its receiver asked for no events before {moment(endpoint.not_before)}."
    return endpoint.status_details or ""


def _last(delivery: DeliveryRecord) -> str:
    if not delivery.attempts:
        return "-"
    attempt = delivery.attempts[-1]
    answer = attempt.error or f"answered {attempt.status_code}"
    following = "" if delivery.next_try_at is None else f"; next try {moment(delivery.next_try_at)}"
    return f"{answer}{following}"
