"""``zhub db``: the database of a production installation. ``zhub up`` does all this by itself."""

from decimal import Decimal
from typing import Annotated

import typer

from zhub.cli import prices
from zhub.cli.connection import DatabaseUrlOption, DataDirOption
from zhub.cli.output import note

app = typer.Typer(help="The database of a production installation; `zhub up` manages its own.", no_args_is_help=True)
app.add_typer(prices.app, name="prices")


@app.command()
def upgrade(
    url: Annotated[
        str, typer.Option(envvar="ZHUB_OWNER_DATABASE_URL", help="PostgreSQL, as the owner of the database.")
    ],
) -> None:
    """Bring the database to this release's schema. Safe to repeat."""
    # Imported within each command, because it imports SQLAlchemy, which `--help` must not wait for.
    from zhub.cli import database_operations

    database_operations.upgrade(url)


@app.command()
def logins(
    url: Annotated[
        str, typer.Option(envvar="ZHUB_OWNER_DATABASE_URL", help="PostgreSQL, as the owner of the database.")
    ],
    api_password: Annotated[
        str, typer.Option(envvar="ZHUB_API_LOGIN_PASSWORD", help="For zhub_api; better in the environment.")
    ],
    system_password: Annotated[
        str, typer.Option(envvar="ZHUB_SYSTEM_LOGIN_PASSWORD", help="For zhub_system_login; likewise.")
    ],
) -> None:
    """Create the logins of API, scheduler and agents, or change their passwords. Run it after upgrade."""
    from zhub.cli import database_operations

    database_operations.logins(url, api_password=api_password, system_password=system_password)


@app.command()
def bootstrap(
    organization: Annotated[str, typer.Option(help="The first organisation.")],
    project: Annotated[str, typer.Option(help="Its first project.")] = "default",
    operator: Annotated[
        bool, typer.Option("--operator", help="The key may also add base models for every organisation.")
    ] = False,
    url: Annotated[
        str,
        typer.Option(envvar="ZHUB_DATABASE_URL", help="PostgreSQL, as a login that is a member of zhub_system."),
    ] = ...,  # type: ignore[assignment]  # typer's way to say "required"
    secret_key: Annotated[
        str, typer.Option(envvar="ZHUB_SECRET_KEY", help="The API's secret key; better in the environment.")
    ] = ...,  # type: ignore[assignment]
) -> None:
    """Make an organisation, a project and a key with all rights in it. The key is printed, once."""
    from zhub.cli import database_operations

    key = database_operations.bootstrap(url, secret_key, organization, project, operator=operator)
    note("This key is shown only now. Keep it, e.g. as ZHUB_API_KEY:")
    typer.echo(key)


@app.command()
def erase(
    organization: Annotated[str, typer.Argument(help="Its name.")],
    reason: Annotated[str | None, typer.Option(help="Why, kept in the proof.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Erase without asking.")] = False,
    url: Annotated[
        str,
        typer.Option(envvar="ZHUB_DATABASE_URL", help="PostgreSQL, as a login that is a member of zhub_system."),
    ] = ...,  # type: ignore[assignment]
    store_url: Annotated[str, typer.Option(envvar="ZHUB_STORE_URL", help="The object store.")] = ...,  # type: ignore[assignment]
    secret_key: Annotated[
        str, typer.Option(envvar="ZHUB_SECRET_KEY", help="The API's secret key, which signs the proof.")
    ] = ...,  # type: ignore[assignment]
) -> None:
    """Erase an organisation: every row and object of it, for good. Prints a signed proof of what was removed.

    Its keys are revoked and its jobs cancelled first. Call it again where it was interrupted.
    """
    from zhub.cli import database_operations

    if not yes:
        typer.confirm(f"Erase the organisation '{organization}' with all that it has, for good?", abort=True, err=True)
    database_operations.erase(url, store_url, secret_key, organization, reason=reason)


@app.command()
def quota(
    organization: Annotated[str, typer.Argument(help="Its name.")],
    weight: Annotated[
        float, typer.Option(min=0.01, max=1000, help="Its share of a cluster, relative to the others'.")
    ] = 1,
    nominal_workers: Annotated[
        float, typer.Option(min=0, help="Guaranteed workers of each cluster: it gets them back by preemption.")
    ] = 0,
    max_workers: Annotated[
        float | None,
        typer.Option(min=0, help="Workers that its jobs may hold in one cluster at a time.", show_default="any"),
    ] = None,
    max_queued: Annotated[
        int | None, typer.Option(min=0, help="Jobs that may wait at a time.", show_default="500")
    ] = None,
    monthly_worker_hours: Annotated[
        float | None,
        typer.Option(
            min=0, help="What its jobs may use in a calendar month; then they are paused.", show_default="any"
        ),
    ] = None,
    monthly_budget: Annotated[
        Decimal | None,
        typer.Option(
            parser=prices.parse_amount,
            metavar="AMOUNT",
            help="What a calendar month may cost, by the price list; then trainings pause, and models refuse.",
            show_default="any",
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=0, help="Of dataset files and private base models.", show_default="200 GiB"),
    ] = None,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(min=1, help="That are answered, by all processes of the API together.", show_default="12000"),
    ] = None,
    url: DatabaseUrlOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Set an organisation's quota. A limit that is not given returns to its default."""
    from zhub.cli import database_operations

    database_operations.set_quota(
        database_operations.system_url(url, data_dir),
        organization,
        weight=weight,
        nominal_workers=nominal_workers,
        max_workers=max_workers,
        max_queued=max_queued,
        monthly_worker_hours=monthly_worker_hours,
        monthly_budget=monthly_budget,
        max_bytes=max_bytes,
        requests_per_minute=requests_per_minute,
    )
