"""Requests of models are refused once an organisation has used up its budget in money for the month.

Whether it has is asked again every few seconds, and not for each request.
"""

import threading
import time
import uuid
from collections.abc import Callable

from fastapi import Depends, Request
from sqlalchemy import Engine

from zhub.admission import budgets
from zhub.admission.budgets import HOURS, BudgetUse
from zhub.database.sessions import tenant_session
from zhub.errors import BudgetSpentError
from zhub_api.context import CallerDep

KEPT_S = 10.0


class SpentBudgets:
    """The budgets in money that are used up, by organisation. Thread-safe."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._spent: dict[uuid.UUID, tuple[BudgetUse | None, float]] = {}

    def check(self, org_id: uuid.UUID) -> None:
        """Raises BudgetSpentError."""
        with self._lock:
            spent, read_at = self._spent.get(org_id, (None, float("-inf")))
        if self._clock() - read_at > KEPT_S:
            with tenant_session(self._engine, org_id) as session:
                uses = budgets.of_organization(session, org_id)
            spent = next((use for use in uses if use.unit != HOURS and use.is_spent), None)
            with self._lock:
                self._spent[org_id] = spent, self._clock()
        if spent is not None:
            raise BudgetSpentError(
                f"{spent.sentence()}: models answer again next month, or with a larger budget, which the platform's "
                "operator sets."
            )


def check(request: Request, caller: CallerDep) -> None:
    request.app.state.spent_budgets.check(caller.org_id)


WithinBudget = Depends(check)
