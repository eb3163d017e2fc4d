"""What the database refuses to change, made changeable for tests that harm it or look at another fence."""

import psycopg
from psycopg import sql


def unfreeze(owner_url: str) -> None:
    """Let what was published in this database be changed and deleted."""
    with psycopg.connect(owner_url, autocommit=True) as connection:
        triggers = "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgname IN ('frozen', 'kept')"
        for names in connection.execute(triggers).fetchall():
            connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER {}").format(*map(sql.Identifier, names)))
