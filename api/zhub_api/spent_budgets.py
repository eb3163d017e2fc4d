"""Requests of models are refused once an organisation has used up its budget in money for the month.

Whether it has is asked again every few seconds, and not for each request.
"""

import time
import uuid
from collections.abc import Callable

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from zhub.admission import budgets
from zhub.admission.budgets import HOURS, BudgetUse
from zhub.errors import BudgetSpentError
from zhub_api.context import CallerDep
from zhub_api.kept_values import KeptValues

KEPT_S = 10.0


class SpentBudgets:
    """The budgets in money that are used up, by organisation. Thread-safe."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._spent = KeptValues(engine, _spent, KEPT_S, clock)

    def check(self, org_id: uuid.UUID) -> None:
        """Raises BudgetSpentError."""
        spent = self._spent.of(org_id)
        if spent is not None:
            raise BudgetSpentError(
                f"{spent.sentence()}: models answer again next month, or with a larger budget, which the platform's "
                "operator sets."
            )


def _spent(session: Session, org_id: uuid.UUID) -> BudgetUse | None:
    uses = budgets.of_organization(session, org_id)
    return next((use for use in uses if use.unit != HOURS and use.is_spent), None)


def check(request: Request, caller: CallerDep) -> None:
    request.app.state.spent_budgets.check(caller.org_id)


WithinBudget = Depends(check)
