"""What the commands of ``zhub db``, ``zhub queue doctor`` and ``zhub queue redrive`` do to the database.

Each command imports this module when it runs: it imports SQLAlchemy, which ``zhub --help`` must not wait for.
"""

import getpass
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from decimal import Decimal
from pathlib import Path

import psycopg
import typer
from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from zhub.cli.exits import ERROR
from zhub.cli.output import moment, note, put, table
from zhub.client.credentials import default_data_dir
from zhub.database import migrate
from zhub.database.logins import API_LOGIN, SYSTEM_LOGIN, ensure_logins
from zhub.database.migrate import check_at_head
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.data_dir import DataDir
from zhub.embedded.postgres import running_system_url
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from zhub.ids import new_id
from zhub.kinds import redrive
from zhub.kinds.redrive import DeadLetters
from zhub.models import Job, Organization, Quota
from zhub.process.config import MIN_SECRET_CHARACTERS
from zhub.queue import invariants
from zhub.storage.object_store import open_store
from zhub.tenancy import erasure, prices
from zhub.tenancy.bootstrap import create_full_key, ensure_project, has_keys
from zhub.tenancy.quotas import limits_of

KEY_NAME = "zhub db bootstrap"
UNITS = {
    "worker_hours": "an hour of a worker",
    "input_tokens": "a million",
    "cached_input_tokens": "a million",
    "output_tokens": "a million",
    "storage": "a GiB a month",
}


def system_url(url: str | None, data_dir: Path | None) -> str:
    """The URL that was given, or that of the database of the zhub that runs on the data directory.

    Raises:
        UnavailableError: none was given, and no zhub runs there.
    """
    if url is not None:
        return url
    directory = (data_dir or default_data_dir()).expanduser().absolute()
    found = running_system_url(DataDir(directory).postgres)
    if found is None:
        raise UnavailableError(
            f"No database runs on {directory}. Start it with `zhub up`, name its directory with --data-dir, or set "
            "ZHUB_DATABASE_URL to one of a production installation."
        )
    return found


def upgrade(owner_url: str) -> None:
    try:
        revision = migrate.upgrade(owner_url)
    except ArgumentError as exc:
        raise InvalidRequestError(f"ZHUB_OWNER_DATABASE_URL: expected postgresql://…: {exc}") from exc
    except OperationalError as exc:
        raise UnavailableError(f"The database does not answer: {_first_line(exc)}") from exc
    except ProgrammingError as exc:
        raise InvalidRequestError(f"The database refused: {_first_line(exc)}. Is this login the owner?") from exc
    note(f"The database is at revision {revision}.")


def logins(owner_url: str, *, api_password: str, system_password: str) -> None:
    try:
        ensure_logins(owner_url, {API_LOGIN: api_password, SYSTEM_LOGIN: system_password})
    except psycopg.OperationalError as exc:
        raise UnavailableError(f"The database does not answer: {exc}") from exc
    except psycopg.ProgrammingError as exc:
        raise InvalidRequestError(f"The database refused: {exc}. May this login make roles?") from exc
    note(f"The logins {API_LOGIN} and {SYSTEM_LOGIN} exist.")


def bootstrap(system_url: str, secret_key: str, organization: str, project: str, *, operator: bool = False) -> str:
    """Return the first key of a project, an ``operator``'s where that is asked for.

    Raises:
        ConflictError: the project has a key already.
        InvalidRequestError: a secret key that the API would not start with.
    """
    if len(secret_key) < MIN_SECRET_CHARACTERS:
        raise InvalidRequestError(
            f"ZHUB_SECRET_KEY must have at least {MIN_SECRET_CHARACTERS} characters, as the API's."
        )
    with _session(system_url) as session:
        made = ensure_project(session, organization, project)
        if has_keys(session, made):
            raise ConflictError(f"The project {organization}/{project} has a key already, which was shown once.")
        return create_full_key(session, made, KEY_NAME, operator=operator, secret_key=secret_key)


def set_quota(
    system_url: str,
    organization: str,
    *,
    weight: float = 1.0,
    nominal_workers: float = 0.0,
    max_workers: float | None = None,
    max_queued: int | None = None,
    monthly_worker_hours: float | None = None,
    monthly_budget: Decimal | None = None,
    max_bytes: int | None = None,
    requests_per_minute: int | None = None,
) -> None:
    """Replace an organisation's quota.

    Raises:
        NotFoundError: there is no such organisation.
        InvalidRequestError: a budget in money that is none, or without prices.
    """
    with _session(system_url) as session:
        currency = prices.check_budget(session, monthly_budget)
        org_id = session.scalar(select(Organization.id).where(Organization.name == organization))
        if org_id is None:
            raise NotFoundError("organization", organization)
        limits = {
            "weight": weight,
            "nominal_workers": nominal_workers,
            "max_workers": max_workers,
            "max_queued": max_queued,
            "monthly_worker_hours": monthly_worker_hours,
            "monthly_budget": monthly_budget,
            "max_bytes": max_bytes,
            "requests_per_minute": requests_per_minute,
        }
        statement = insert(Quota).values(id=new_id(), org_id=org_id, **limits)
        session.execute(statement.on_conflict_do_update(index_elements=["org_id"], set_=limits))
        counted = limits_of(session, org_id)
    any_ = {name: "any number of" if limit is None else f"{limit:g}" for name, limit in limits.items()}
    money = "" if monthly_budget is None else f" and {monthly_budget:f} {currency}"
    note(
        f"{organization}: weight {weight:g}, {nominal_workers:g} guaranteed workers of a cluster, "
        f"{any_['max_workers']} workers of it at most, {counted.max_queued:,} jobs waiting, "
        f"{any_['monthly_worker_hours']} worker-hours{money} a month. It may store {counted.max_bytes:,} bytes "
        f"and send {counted.requests_per_minute:,} requests a minute. The scheduler applies it from its next pass on."
    )


def list_prices(system_url: str, *, as_json: bool) -> None:
    """Print the price list, also what no longer holds or does not yet."""
    with _session(system_url) as session:
        listed = prices.list_prices(session)
    names = ("item", "subject", "amount", "currency", "valid_from")
    if as_json:
        return typer.echo(json.dumps([{n: str(getattr(price, n)) for n in names} for price in listed], indent=2))
    if not listed:
        return note("Nothing has a price: costs are unknown. `zhub db prices set` sets one.")
    rows = [
        (
            price.item.replace("_", "-"),
            price.subject or "all",
            f"{price.amount:f} {price.currency} {UNITS[price.item]}",
            str(price.valid_from),
        )
        for price in listed
    ]
    put(table(("ITEM", "FOR", "PRICE", "FROM (UTC)"), rows, whole=1))


def set_price(
    system_url: str, item: str, amount: Decimal, *, subject: str, currency: str | None, valid_from: date | None
) -> None:
    """Append a price to the list.

    Raises:
        InvalidRequestError, ConflictError: see ``prices.add``.
    """
    with _session(system_url) as session:
        price = prices.add(session, item, amount, subject=subject, currency=currency, valid_from=valid_from)
        named, unit = price.item.replace("_", "-"), UNITS[price.item]
        note(
            f"{named} for {price.subject or 'all'}: {price.amount:f} {price.currency} {unit} from {price.valid_from} "
            "(UTC) on."
        )


def redrive_jobs(system_url: str, which: DeadLetters, *, do_it: bool) -> None:
    """List the failed jobs that ``which`` describes; with ``do_it`` also queue them again."""
    with _session(system_url) as session:
        failed_jobs = redrive.find(session, which)
        for job in failed_jobs:
            error = job.error or {}
            ended = moment(job.finished_at.timestamp()) if job.finished_at else "-"
            typer.echo(f"{job.id}  {job.kind}  {ended}  {error.get('code')}: {error.get('message')}")
            if do_it:
                redrive.request(session, job, by=f"operator {getpass.getuser()}")
    if do_it:
        note(f"{len(failed_jobs)} jobs are queued again by the scheduler's next pass.")
    else:
        note(f"{len(failed_jobs)} failed jobs. Nothing was changed; --yes queues them again.")


def examine_history(system_url: str, *, as_json: bool = False) -> None:
    """Print the rows that break a rule of the history; exit with 1 if there are any."""
    with _session(system_url) as session:
        findings = invariants.examine(session)
        count = session.scalar(select(func.count()).select_from(Job))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], default=str, indent=2))
    for finding in [] if as_json else findings:
        typer.echo(f"{finding.id}  {finding.rule}: {finding.detail}")
    if findings:
        note(f"{len(findings)} rows break a rule. Please report them: this is a fault of zhub.")
        sys.exit(ERROR)
    note(f"{count} jobs, {len(invariants.RULES)} rules, nothing is wrong.")


def erase(system_url: str, store_url: str, secret_key: str, organization: str, *, reason: str | None) -> None:
    """Erase an organisation, and print the proof.

    Raises:
        NotFoundError: there is no such organisation.
        NotReadyError: jobs of it still run.
    """
    store = open_store(store_url)
    with system_engine(system_url) as engine:
        org_id = erasure.begin(engine, organization, by=getpass.getuser(), reason=reason)
        erased = erasure.erase(engine, store, org_id, secret_key)
    rows = sum(erased.counts.values())
    note(f"{organization} is erased: {rows:,} rows and {erased.objects:,} objects. This proof stays in the database:")
    typer.echo(json.dumps(erased.proof, indent=2))


@contextmanager
def _session(system_url: str) -> Iterator[Session]:
    """A session of a member of zhub_system, with errors for people."""
    with system_engine(system_url) as engine, system_session(engine) as session:
        yield session


@contextmanager
def system_engine(system_url: str) -> Iterator[Engine]:
    """An engine of a member of zhub_system on a database of this release, with errors for people."""
    try:
        engine = make_engine(system_url, pool_size=1)
        try:
            check_at_head(engine)
            yield engine
        finally:
            engine.dispose()
    except ArgumentError as exc:
        raise InvalidRequestError(f"ZHUB_DATABASE_URL: expected postgresql://…: {exc}") from exc
    except OperationalError as exc:
        raise UnavailableError(f"The database does not answer: {_first_line(exc)}") from exc
    except ProgrammingError as exc:
        raise InvalidRequestError(
            f"The database refused: {_first_line(exc)}. This login must be a member of zhub_system."
        ) from exc


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0].rstrip(".")
