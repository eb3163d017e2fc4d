"""``python -m zhub.cli.database_process``: what ``zhub db`` does, with the imports that the command itself avoids."""

import getpass
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta

import psycopg
import typer
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from zhub.cli.exits import ERROR, exit_code
from zhub.cli.output import note, show_error
from zhub.database import migrate
from zhub.database.logins import ensure_logins
from zhub.database.migrate import check_at_head
from zhub.database.sessions import make_engine, system_session
from zhub.embedded.postgres import API_LOGIN, SYSTEM_LOGIN
from zhub.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError, ZhubError
from zhub.ids import new_id
from zhub.models import Job, Organization, Quota
from zhub.process.config import MIN_SECRET_CHARACTERS
from zhub.queue import invariants, redrive
from zhub.queue.redrive import DeadLetters
from zhub.tenancy.bootstrap import create_full_key, ensure_project, has_keys

KEY_NAME = "zhub db bootstrap"


def main() -> None:
    command, *arguments = sys.argv[1:]
    try:
        if command == "upgrade":
            upgrade(os.environ["ZHUB_OWNER_DATABASE_URL"])
        elif command == "logins":
            logins(
                os.environ["ZHUB_OWNER_DATABASE_URL"],
                api_password=os.environ["ZHUB_API_LOGIN_PASSWORD"],
                system_password=os.environ["ZHUB_SYSTEM_LOGIN_PASSWORD"],
            )
        elif command == "doctor":
            examine_history(os.environ["ZHUB_DATABASE_URL"], as_json="--json" in arguments)
        elif command == "redrive":
            organization, kind, code, hours = (value or None for value in arguments[:4])
            within = timedelta(hours=float(hours)) if hours else None
            which = DeadLetters(organization, kind, code, within)
            redrive_jobs(os.environ["ZHUB_DATABASE_URL"], which, do_it="--yes" in arguments)
        elif command == "quota":
            organization, weight, nominal_workers, *limits = arguments
            max_workers, max_queued, monthly_hours = (float(limit) if limit else None for limit in limits)
            set_quota(
                os.environ["ZHUB_DATABASE_URL"],
                organization,
                weight=float(weight),
                nominal_workers=float(nominal_workers),
                max_workers=max_workers,
                max_queued=None if max_queued is None else int(max_queued),
                monthly_worker_hours=monthly_hours,
            )
        else:
            organization, project = arguments
            key = bootstrap(os.environ["ZHUB_DATABASE_URL"], os.environ["ZHUB_SECRET_KEY"], organization, project)
            note("This key is shown only now. Keep it, e.g. as ZHUB_API_KEY:")
            typer.echo(key)
    except ZhubError as exc:
        show_error(exc)
        sys.exit(exit_code(exc))


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
    note(f"The logins {API_LOGIN} and {SYSTEM_LOGIN} are there.")


def bootstrap(system_url: str, secret_key: str, organization: str, project: str) -> str:
    """Return the first key of a project.

    Raises:
        ConflictError: the project has a key already.
        InvalidRequestError: a secret key that the API would not start with.
    """
    if len(secret_key) < MIN_SECRET_CHARACTERS:
        raise InvalidRequestError(
            f"ZHUB_SECRET_KEY must have at least {MIN_SECRET_CHARACTERS} characters, as the API's."
        )
    with _session(system_url) as session:
        found = ensure_project(session, organization, project)
        if has_keys(session, found):
            raise ConflictError(f"The project {organization}/{project} has a key already, which was shown once.")
        return create_full_key(session, found, KEY_NAME, secret_key=secret_key)


def set_quota(
    system_url: str,
    organization: str,
    *,
    weight: float = 1.0,
    nominal_workers: float = 0.0,
    max_workers: float | None = None,
    max_queued: int | None = None,
    monthly_worker_hours: float | None = None,
) -> None:
    """Replace an organisation's quota.

    Raises:
        NotFoundError: there is no such organisation.
    """
    with _session(system_url) as session:
        org_id = session.scalar(select(Organization.id).where(Organization.name == organization))
        if org_id is None:
            raise NotFoundError("organization", organization)
        limits = {
            "weight": weight,
            "nominal_workers": nominal_workers,
            "max_workers": max_workers,
            "max_queued": max_queued,
            "monthly_worker_hours": monthly_worker_hours,
        }
        statement = insert(Quota).values(id=new_id(), org_id=org_id, **limits)
        session.execute(statement.on_conflict_do_update(index_elements=["org_id"], set_=limits))
    any_ = {name: "any number of" if limit is None else f"{limit:g}" for name, limit in limits.items()}
    note(
        f"{organization}: weight {weight:g}, {nominal_workers:g} workers of a cluster for sure, {any_['max_workers']} "
        f"workers of it at most, {any_['max_queued']} jobs waiting, {any_['monthly_worker_hours']} worker-hours a "
        "month. It holds from the scheduler's next pass on."
    )


def redrive_jobs(system_url: str, which: DeadLetters, *, do_it: bool) -> None:
    """List the failed jobs that are meant, and queue them again if that is wished."""
    with _session(system_url) as session:
        found = redrive.find(session, which)
        for job in found:
            error = job.error or {}
            typer.echo(
                f"{job.id}  {job.kind}  {job.finished_at:%Y-%m-%d %H:%M}  {error.get('code')}: {error.get('message')}"
            )
            if do_it:
                redrive.request(session, job, by=f"operator {getpass.getuser()}")
    if do_it:
        note(f"{len(found)} jobs are queued again by the scheduler's next pass.")
    else:
        note(f"{len(found)} failed jobs. Nothing was changed; --yes queues them again.")


def examine_history(system_url: str, *, as_json: bool = False) -> None:
    """Print what breaks a rule of the history, if anything; exit with 1 then."""
    with _session(system_url) as session:
        found = invariants.examine(session)
        count = session.scalar(select(func.count()).select_from(Job))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], default=str, indent=2))
    for finding in [] if as_json else found:
        typer.echo(f"{finding.id}  {finding.rule}: {finding.detail}")
    if found:
        note(f"{len(found)} rows break a rule. Please report them: this must not be.")
        sys.exit(ERROR)
    note(f"{count} jobs, {len(invariants.RULES)} rules, nothing is wrong.")


@contextmanager
def _session(system_url: str) -> Iterator[Session]:
    """A session of a member of zhub_system, with errors for people."""
    try:
        engine = make_engine(system_url, pool_size=1)
        try:
            check_at_head(engine)
            with system_session(engine) as session:
                yield session
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


if __name__ == "__main__":
    main()
