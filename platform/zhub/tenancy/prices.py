"""The price list, which an operator appends to. Functions take a Session and never commit.

A price holds for whole days (UTC), and what a day has cost is never changed by a later price: only the first price of
an item may begin in the past, as long as there is none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from sqlalchemy import ColumnElement, Date, func, select, text
from sqlalchemy.orm import Session

from zhub.errors import ConflictError, InvalidRequestError
from zhub.models import Price
from zhub.models.costs import ITEMS

MAX_AMOUNT = Decimal(10) ** 9
BY_CLUSTER, BY_BASE = ("worker_hours",), ("input_tokens", "cached_input_tokens", "output_tokens")


@dataclass(frozen=True)
class Money:
    """An amount in the currency of the price list."""

    amount: Decimal
    currency: str


def currency(session: Session) -> str | None:
    """The currency of all prices (ISO 4217); None where nothing has a price."""
    return session.scalar(select(Price.currency).limit(1))


def list_prices(session: Session) -> Sequence[Price]:
    """All prices that ever held or will, by item and subject, the newest first."""
    return session.scalars(select(Price).order_by(Price.item, Price.subject, Price.valid_from.desc())).all()


def price_of(session: Session, item: str, subject: str) -> Money | None:
    """What a unit of the item costs today; None where it has no price."""
    row = session.execute(
        select(Price.amount, Price.currency)
        .where(Price.item == item, Price.subject.in_((subject, "")), Price.valid_from <= _today())
        .order_by(Price.subject.desc(), Price.valid_from.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Money(*row)


def add(
    session: Session, item: str, amount: Decimal, *, subject: str, currency: str | None, valid_from: date | None
) -> Price:
    """Append a price: from today where the item has none yet, else from tomorrow, unless ``valid_from`` says when.

    Raises:
        InvalidRequestError: it is no price, or would change what days have cost.
        ConflictError: there is one of this item, subject and day, or the list is in another currency.
    """
    _check(item, subject, amount)
    # One at a time: two could each set the first currency. Only who may change rows may lock the table.
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('zhub.prices'))"))
    today: date = session.scalars(select(_today())).one()
    is_first = session.scalar(select(Price.id).where(Price.item == item).limit(1)) is None
    begins = valid_from or (today if is_first else today + timedelta(days=1))
    if not is_first and begins <= today:
        raise InvalidRequestError(
            f"{item} has a price already, and what days have cost does not change: a new one can begin tomorrow, "
            f"{today + timedelta(days=1)}, or later; not on {begins}.",
            param="valid_from",
        )
    chosen = _currency(session, currency)
    same = select(Price.amount).where(Price.item == item, Price.subject == subject, Price.valid_from == begins)
    if (there := session.scalar(same)) is not None:
        raise ConflictError(f"{item} has a price from {begins} on already: {there:f} {chosen}. Choose another day.")
    price = Price(item=item, subject=subject, amount=amount, currency=chosen, valid_from=begins)
    session.add(price)
    session.flush()
    return price


def check_budget(session: Session, budget: Decimal | None) -> str | None:
    """The currency that a budget for a month is in.

    Raises:
        InvalidRequestError: it is no amount, or nothing has a price that it could be compared with.
    """
    listed = currency(session)
    if budget is None:
        return listed
    if not budget.is_finite() or not 0 <= budget <= MAX_AMOUNT:
        raise InvalidRequestError(f"Expected a budget from 0 to {MAX_AMOUNT:,}, found {budget}.", param="budget")
    if listed is None:
        raise InvalidRequestError(
            "Nothing has a price yet, so nothing would ever count for a budget in money. Set a price "
            "first, such as that of worker-hours.",
            param="budget",
        )
    return listed


def _check(item: str, subject: str, amount: Decimal) -> None:
    if item not in ITEMS:
        raise InvalidRequestError(f"'{item}' has no price. What can have one: {', '.join(ITEMS)}.", param="item")
    if subject and item not in (*BY_CLUSTER, *BY_BASE):
        raise InvalidRequestError(f"{item} has one price for all; found one for '{subject}'.", param="subject")
    if not amount.is_finite() or not 0 <= amount <= MAX_AMOUNT:
        raise InvalidRequestError(f"Expected a price from 0 to {MAX_AMOUNT:,}, found {amount}.", param="amount")


def _currency(session: Session, wanted: str | None) -> str:
    """The currency of a new price.

    Raises:
        InvalidRequestError: it is the first, and names none.
        ConflictError: the list is in another.
    """
    listed = currency(session)
    if wanted is None and listed is None:
        raise InvalidRequestError("The first price says the currency of all: EUR, USD, …", param="currency")
    if wanted is not None and not re.fullmatch("[A-Z]{3}", wanted):
        raise InvalidRequestError(f"Expected a currency as in ISO 4217 (EUR, USD), found '{wanted}'.", param="currency")
    if wanted is not None and listed not in (None, wanted):
        raise ConflictError(f"All prices are in {listed}, and one list has one currency: {wanted} is refused.")
    return listed or str(wanted)


def _today() -> ColumnElement[date]:
    return func.date(func.timezone("UTC", func.now()), type_=Date)
