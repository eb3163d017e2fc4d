"""Amounts of money, as answers have them: a number, and a currency in lower case as the dialect's."""

from decimal import Decimal
from typing import Any


def shown_money(amount: Decimal | None, currency: str | None) -> dict[str, Any] | None:
    """None where there is no amount: what has no price costs nothing that is known."""
    if amount is None or currency is None:
        return None
    # JSON has one kind of number; the sums were made before.
    return {"value": float(amount), "currency": currency.lower()}
