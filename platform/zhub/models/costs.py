"""What things cost, and what organisations are told of their budgets."""

import uuid
from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import CheckConstraint, UniqueConstraint, Uuid, func
from sqlalchemy.orm import Mapped, mapped_column

from zhub.ids import new_id
from zhub.models.base import Base, TenantOwned

ITEMS = ("worker_hours", "input_tokens", "cached_input_tokens", "output_tokens", "storage")


class Price(Base):
    """What a unit of an item costs from the day ``valid_from`` (UTC) on. A row is never changed: a newer one follows.

    Its unit is an hour of a worker, a million tokens, or a GiB stored for a month.
    """

    __tablename__ = "prices"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=new_id)
    item: Mapped[str]
    subject: Mapped[str]
    """The cluster, or the base; empty: all that have no price of their own."""
    amount: Mapped[Decimal]
    currency: Mapped[str]
    """ISO 4217. One for the whole list."""
    valid_from: Mapped[date]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        UniqueConstraint("item", "subject", "valid_from"),
        CheckConstraint(f"item IN ({', '.join(repr(item) for item in ITEMS)})", name="item"),
        CheckConstraint("amount >= 0", name="amount"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency"),
    )


class MonthCost(TenantOwned, Base):
    """What an organisation's calendar month (UTC) has cost until ``at``: what its budget is compared with."""

    __tablename__ = "month_costs"
    month: Mapped[date]
    amount: Mapped[Decimal]
    at: Mapped[datetime]
    __table_args__ = (UniqueConstraint("org_id", "id"), UniqueConstraint("org_id", "month"))


class BudgetNotice(TenantOwned, Base):
    """An organisation was told that it has used a part of a budget in a month: once for each size of the budget."""

    __tablename__ = "budget_notices"
    month: Mapped[date]
    unit: Mapped[str]
    percent: Mapped[int]
    budget: Mapped[Decimal]
    __table_args__ = (
        UniqueConstraint("org_id", "id"),
        UniqueConstraint("org_id", "month", "unit", "percent", "budget"),
    )
