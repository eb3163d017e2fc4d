"""``python -m zhub.cli.database_process``: what ``zhub db`` does, with the imports that the command itself avoids."""

import os
import sys

import psycopg
import typer
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError

from zhub import migrate
from zhub.bootstrap import create_full_key, ensure_project, has_keys
from zhub.cli.exits import exit_code
from zhub.cli.output import note, show_error
from zhub.db import make_engine, system_session
from zhub.embedded.postgres import API_LOGIN, SYSTEM_LOGIN
from zhub.errors import ConflictError, InvalidRequestError, UnavailableError, ZhubError
from zhub.logins import ensure_logins
from zhub.migrate import check_at_head

KEY_NAME = "zhub db bootstrap"
MIN_SECRET_CHARACTERS = 32  # the API refuses to start with less


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
    try:
        engine = make_engine(system_url, pool_size=1)
        check_at_head(engine)
        with system_session(engine) as session:
            found = ensure_project(session, organization, project)
            if has_keys(session, found):
                raise ConflictError(f"The project {organization}/{project} has a key already, which was shown once.")
            return create_full_key(session, found, KEY_NAME, secret_key=secret_key)
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
