"""Reservations of keys that are named by their content: equal files are one object, which several rows may name.

Whoever stores such a file reserves its key, puts it, and writes the row; the collection removes an object only while
nobody has reserved its key. Both take the lock of the key's row, so that one of them comes first: a file that is being
removed is put again, and one that is about to be named stays. Functions take a Session and never commit.
"""

from datetime import timedelta

from sqlalchemy import and_, delete, func, or_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from zhub.errors import UnavailableError
from zhub.models import ObjectReservation

KEPT_FOR = timedelta(hours=6)  # longer than any upload takes from its first byte to its row
REMOVED_WITHIN = timedelta(minutes=15)  # longer than a store takes to remove an object, with all its retries


def reserve(session: Session, key: str) -> None:
    """Let nobody remove the object under this key for a while, whether it is there or not. Commit before it is put.

    Raises:
        UnavailableError: it is being removed at this moment; a moment later it can be put anew.
    """
    row = insert(ObjectReservation).values(key=key, kept_until=func.now() + KEPT_FOR)
    is_free = or_(ObjectReservation.removed_until.is_(None), ObjectReservation.removed_until < func.now())
    taken = row.on_conflict_do_update(
        index_elements=["key"], set_={"kept_until": func.now() + KEPT_FOR, "removed_until": None}, where=is_free
    )
    if session.scalar(taken.returning(ObjectReservation.key)) is None:
        raise UnavailableError(f"{key}: an old object of this name is being removed. Send the same file again.")


def begin_removal(session: Session, key: str) -> bool:
    """Whether the caller may remove the object: nobody has reserved its key. Look again then whether a row names it."""
    row = insert(ObjectReservation).values(key=key, removed_until=func.now() + REMOVED_WITHIN)
    is_free = and_(
        or_(ObjectReservation.kept_until.is_(None), ObjectReservation.kept_until < func.now()),
        or_(ObjectReservation.removed_until.is_(None), ObjectReservation.removed_until < func.now()),
    )
    taken = row.on_conflict_do_update(
        index_elements=["key"], set_={"removed_until": func.now() + REMOVED_WITHIN, "kept_until": None}, where=is_free
    )
    return session.scalar(taken.returning(ObjectReservation.key)) is not None


def end_removal(session: Session, key: str) -> None:
    """The object is gone, or stays after all."""
    session.execute(delete(ObjectReservation).where(ObjectReservation.key == key))


def forget_old(session: Session) -> None:
    """Remove the reservations whose time is over."""
    is_over = and_(
        or_(ObjectReservation.kept_until.is_(None), ObjectReservation.kept_until < func.now()),
        or_(ObjectReservation.removed_until.is_(None), ObjectReservation.removed_until < func.now()),
    )
    session.execute(delete(ObjectReservation).where(is_over))
