"""The two logins of a production database: the API's, which sees one tenant, and the system's, which sees all.

``zhub up`` makes its own without passwords: nobody else gets to its server.
"""

from collections.abc import Mapping

import psycopg
from psycopg import sql

from zhub.errors import InvalidRequestError

ADMIN, OWNER, API_LOGIN, SYSTEM_LOGIN = "zhub_admin", "zhub_owner", "zhub_api", "zhub_system_login"
# The group roles are made by the first migration.
GROUP_OF_LOGIN = {API_LOGIN: "zhub_app", SYSTEM_LOGIN: "zhub_system"}


def ensure_logins(owner_url: str, passwords: Mapping[str, str]) -> None:
    """Make the logins, or give them these passwords, and put each into its group. Safe to repeat.

    ``owner_url`` is a login that may make roles; the migrations, which make the groups, have run. ``passwords``
    has one for each of ``GROUP_OF_LOGIN``.

    Raises:
        InvalidRequestError: a login of that name is there that row-level security does not hold for.
    """
    with psycopg.connect(owner_url, autocommit=True, connect_timeout=5) as connection:
        for login in GROUP_OF_LOGIN:
            found = connection.execute(
                "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = %s", [login]
            ).fetchone()
            if found is not None and found[0]:
                raise InvalidRequestError(f"The login '{login}' passes row-level security. Drop it and try again.")
            # Encrypted here: the server may log the statements it is sent.
            password = connection.pgconn.encrypt_password(passwords[login].encode(), login.encode(), b"scram-sha-256")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                    sql.SQL("CREATE" if found is None else "ALTER"),
                    sql.Identifier(login),
                    sql.Literal(password.decode()),
                )
            )
    grant_groups(owner_url)


def grant_groups(admin_url: str) -> None:
    """Put the logins into the group roles that the migrations made. Safe to repeat.

    As the superuser: from PostgreSQL 16 on, CREATEROLE grants only what it made itself.
    """
    with psycopg.connect(admin_url, autocommit=True) as connection:
        for login, group in GROUP_OF_LOGIN.items():
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(login)))
