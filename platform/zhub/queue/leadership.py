"""Leader election: one row, changed by compare-and-swap on the database's clock, with a term that fences writes."""

import uuid

from sqlalchemy import text
from sqlalchemy.orm import Session

from zhub.errors import DeposedError

SCHEDULER = "scheduler"


def elect(session: Session, name: str, holder: uuid.UUID, *, lease_s: float) -> int | None:
    """Become or stay the leader; return the term, or None while another process leads."""
    term: int | None = session.scalar(
        text(
            """
            INSERT INTO leaders (name, holder, term, lease_until)
            VALUES (:name, :holder, 1, now() + make_interval(secs => :lease_s))
            ON CONFLICT (name) DO UPDATE
               SET term = leaders.term + (leaders.holder IS DISTINCT FROM excluded.holder)::int,
                   holder = excluded.holder, lease_until = excluded.lease_until
             WHERE leaders.lease_until < now() OR leaders.holder = excluded.holder
         RETURNING term
            """
        ),
        {"name": name, "holder": holder, "lease_s": lease_s},
    )
    return term


def check_leading(session: Session, name: str, holder: uuid.UUID, term: int) -> None:
    """The first statement of every transaction that only the leader may commit.

    Locks the row against an election until the transaction ends. Raises DeposedError.
    """
    row = session.execute(
        text("SELECT 1 FROM leaders WHERE name = :name AND holder = :holder AND term = :term FOR SHARE"),
        {"name": name, "holder": holder, "term": term},
    ).one_or_none()
    if row is None:
        raise DeposedError(f"{name}: term {term} is over")


def resign(session: Session, name: str, holder: uuid.UUID) -> None:
    """End the leader's lease, so that another process can be elected at once."""
    session.execute(
        text("UPDATE leaders SET lease_until = now() - interval '1 second' WHERE name = :name AND holder = :holder"),
        {"name": name, "holder": holder},
    )
