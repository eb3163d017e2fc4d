"""The logins of a production database come from a password each, and are no way past row-level security."""

from collections.abc import Iterator

import psycopg
import pytest

from zhub.database.logins import API_LOGIN, SYSTEM_LOGIN, ensure_logins
from zhub.embedded.postgres import Urls
from zhub.errors import InvalidRequestError

PASSWORDS = {API_LOGIN: "for'the \\api", SYSTEM_LOGIN: "für das System"}


@pytest.fixture
def forget_passwords(database: Urls) -> Iterator[None]:
    """The server is shared by all tests; none but these knows of passwords."""
    yield
    with psycopg.connect(database.admin, autocommit=True) as connection:
        for login in PASSWORDS:
            connection.execute(f"ALTER ROLE {login} PASSWORD NULL NOBYPASSRLS")


def stored(database: Urls) -> dict[str, str]:
    with psycopg.connect(database.admin) as connection:
        return dict(
            connection.execute(
                "SELECT rolname::text, rolpassword::text FROM pg_authid WHERE rolname = ANY (%s)", [list(PASSWORDS)]
            ).fetchall()
        )


@pytest.mark.usefixtures("forget_passwords")
def test_each_login_gets_its_password_and_the_server_never_sees_it(database: Urls) -> None:
    ensure_logins(database.admin, PASSWORDS)
    assert all(verifier.startswith("SCRAM-SHA-256$") for verifier in stored(database).values())
    assert set(stored(database)) == set(PASSWORDS)


@pytest.mark.usefixtures("forget_passwords")
def test_making_the_logins_again_changes_their_passwords(database: Urls) -> None:
    ensure_logins(database.admin, PASSWORDS)
    before = stored(database)
    ensure_logins(database.admin, {login: "another" for login in PASSWORDS})
    assert all(before[login] != after for login, after in stored(database).items())


@pytest.mark.usefixtures("forget_passwords")
def test_a_login_that_passes_row_level_security_is_refused(database: Urls) -> None:
    with psycopg.connect(database.admin, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {API_LOGIN} BYPASSRLS")
    with pytest.raises(InvalidRequestError, match=API_LOGIN):
        ensure_logins(database.admin, PASSWORDS)
