"""Budgets in money: told at 80 and 100 %, and then nothing begins, trainings pause, and models refuse."""

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import openai
import pytest
from admission_passes import add_row, admit, desired_changes_of, places, running_for
from api_requests import refused
from job_moves import execute
from sqlalchemy import Engine, select

from zhub.admission import budgets
from zhub.cli.database_operations import set_quota
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.errors import BudgetSpentError, InvalidRequestError
from zhub.kinds import table
from zhub.models import Price, Quota, WebhookDelivery, WebhookEndpoint, WorkerUsage
from zhub.tenancy import month_costs
from zhub.tenancy.keys import Caller
from zhub_api.spent_budgets import KEPT_S, SpentBudgets

MakeJob = Callable[..., uuid.UUID]


@pytest.fixture(autouse=True)
def price(system_engine: Engine) -> None:
    row = {"subject": "", "amount": Decimal(10), "currency": "EUR", "valid_from": date(2026, 1, 1)}
    add_row(system_engine, Price(item="worker_hours", **row))


def used(engine: Engine, caller: Caller, hours: float) -> None:
    """So many hours of workers have ended today, and the month was added up since."""
    named = {"cluster": "c", "kind": "evaluate", "expert": "", "base_model": "", "trained_tokens": 0}
    own = {"org_id": caller.org_id, "project_id": caller.project_id}
    today = datetime.now(UTC).date()
    execute(engine, "DELETE FROM worker_usages WHERE org_id = :org", org=caller.org_id)
    add_row(engine, WorkerUsage(day=today, worker_seconds=3600 * hours, **named, **own))
    execute(engine, "UPDATE month_costs SET at = now() - interval '1 hour'")
    with system_session(engine) as session:
        assert month_costs.compute_next(session)


def notices(engine: Engine) -> list[tuple[int, float, float, str]]:
    with system_session(engine) as session:
        told = budgets.give_notice(session)
    return [(notice.percent, notice.use.used, notice.use.budget, notice.use.unit) for notice in told]


def test_a_spent_budget_pauses_trainings_and_lets_no_job_begin(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller, globex: Caller
) -> None:
    make_agent(slots=4)
    runs = running_for(system_engine, acme, make_job, 1)
    add_row(system_engine, Quota(org_id=acme.org_id, monthly_budget=Decimal("50")))
    used(system_engine, acme, 3.9)  # and an hour that still runs
    with system_session(system_engine) as session:
        assert budgets.pause_spent(session, table.names()) == 0
    used(system_engine, acme, 4.1)
    with system_session(system_engine) as session:
        assert budgets.pause_spent(session, table.names()) == 1
    assert desired_changes_of(system_engine, runs) == ["pause"]
    waiting, theirs = make_job(acme), make_job(globex)
    assert admit(system_engine) == [theirs]
    assert "has used 51.00 of the 50.00 EUR that is its budget" in places(system_engine)[waiting].reason
    execute(system_engine, "UPDATE quotas SET monthly_budget = 60")
    assert set(admit(system_engine)) == {theirs, waiting}


def test_the_month_is_added_up_for_who_has_a_budget_and_not_again_at_once(
    system_engine: Engine, acme: Caller, globex: Caller
) -> None:
    for caller in (acme, globex):
        add_row(system_engine, Quota(org_id=caller.org_id, monthly_budget=Decimal(5)))
    execute(system_engine, "UPDATE quotas SET monthly_budget = NULL WHERE org_id = :org", org=globex.org_id)
    with system_session(system_engine) as session:
        assert month_costs.compute_next(session)
    with system_session(system_engine) as session:
        assert not month_costs.compute_next(session)
        assert [use.used for use in budgets.of_organization(session, acme.org_id)] == [0]
        assert budgets.of_organization(session, globex.org_id) == []


def test_each_threshold_is_told_once_for_each_size_of_the_budget(system_engine: Engine, acme: Caller) -> None:
    add_row(system_engine, Quota(org_id=acme.org_id, monthly_budget=Decimal(100)))
    used(system_engine, acme, 7.9)
    assert notices(system_engine) == []
    used(system_engine, acme, 8)
    assert notices(system_engine) == [(80, 80.0, 100.0, "EUR")]
    assert notices(system_engine) == []
    used(system_engine, acme, 11)
    assert notices(system_engine) == [(100, 110.0, 100.0, "EUR")]
    execute(system_engine, "UPDATE quotas SET monthly_budget = 130, monthly_worker_hours = 1000")
    assert notices(system_engine) == [(80, 110.0, 130.0, "EUR")]


def test_hours_have_thresholds_as_money_has(
    system_engine: Engine, make_job: MakeJob, make_agent: Callable[..., uuid.UUID], acme: Caller
) -> None:
    make_agent(slots=1)
    add_row(system_engine, Quota(org_id=acme.org_id, monthly_worker_hours=1.2))
    running_for(system_engine, acme, make_job, 1)
    ((percent, _, budget, unit),) = notices(system_engine)
    assert (percent, budget, unit) == (80, 1.2, budgets.HOURS)


def test_every_project_hears_of_it(
    system_engine: Engine, acme: Caller, globex: Caller, make_caller: Callable[..., Caller]
) -> None:
    others = make_caller("acme", project="second")
    for caller in (acme, others, globex):
        row = {"name": "n", "url": "https://example.com", "event_types": ["budget.threshold_reached"]}
        add_row(system_engine, WebhookEndpoint(org_id=caller.org_id, project_id=caller.project_id, **row))
    add_row(system_engine, Quota(org_id=acme.org_id, monthly_budget=Decimal(10)))
    used(system_engine, acme, 0.9)
    notices(system_engine)
    with system_session(system_engine) as session:
        sent = session.scalars(select(WebhookDelivery)).all()
    assert {delivery.org_id for delivery in sent} == {acme.org_id}
    month = f"{datetime.now(UTC):%Y-%m}"
    announced = {"id": month, "percent": 80, "used": 9.0, "budget": 10.0, "unit": "EUR"}
    assert [delivery.data for delivery in sent] == [announced, announced]


def test_models_refuse_once_the_budget_is_spent_and_answer_with_a_larger_one(
    system_engine: Engine, api_engine: Engine, acme: Caller, globex: Caller
) -> None:
    clock = [0.0]
    spent = SpentBudgets(api_engine, lambda: clock[0])
    add_row(system_engine, Quota(org_id=acme.org_id, monthly_budget=Decimal(10), monthly_worker_hours=0.5))
    used(system_engine, acme, 0.9)
    spent.check(acme.org_id)
    used(system_engine, acme, 1)
    spent.check(acme.org_id)  # what was read holds for a while
    clock[0] += KEPT_S + 1
    with pytest.raises(BudgetSpentError, match="10.00 of the 10.00 EUR .* models answer again next month"):
        spent.check(acme.org_id)
    spent.check(globex.org_id)
    execute(system_engine, "UPDATE quotas SET monthly_budget = 20")
    clock[0] += KEPT_S + 1
    spent.check(acme.org_id)


def test_the_client_is_told_what_to_do_and_does_not_repeat(
    client: openai.OpenAI, system_engine: Engine, caller: Caller, make_base_model: Any
) -> None:
    make_base_model(is_default=True)
    add_row(system_engine, Quota(org_id=caller.org_id, monthly_budget=Decimal(10)))
    used(system_engine, caller, 2)
    message: Any = [{"role": "user", "content": "x"}]
    asked: list[Callable[[], Any]] = [
        lambda: client.chat.completions.create(model="tiny", messages=message),
        lambda: client.completions.create(model="tiny", prompt="x"),
        lambda: client.embeddings.create(model="tiny", input="x"),
    ]
    for ask in asked:
        error = refused(ask)
        assert (error.status_code, error.code) == (429, "insufficient_quota")
        assert error.response.headers["x-should-retry"] == "false"
    limits: Any = client.get("/organization/limits", cast_to=object)
    assert limits["budgets"] == [{"used": 20, "budget": 10, "unit": "EUR"}]


def test_an_operator_sets_a_budget_in_money(
    system_engine: Engine, database: Urls, acme: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    set_quota(database.system, "acme", monthly_budget=Decimal("99.50"))
    assert "any number of worker-hours and 99.50 EUR a month" in capsys.readouterr().err
    with system_session(system_engine) as session:
        assert session.scalar(select(Quota.monthly_budget)) == Decimal("99.50")
    with pytest.raises(InvalidRequestError, match="Expected a budget from 0"):
        set_quota(database.system, "acme", monthly_budget=Decimal(-1))


def test_a_budget_in_money_needs_prices(owner_engine: Engine, database: Urls, acme: Caller) -> None:
    execute(owner_engine, "TRUNCATE prices")
    with pytest.raises(InvalidRequestError, match="Set a price first"):
        set_quota(database.system, "acme", monthly_budget=Decimal(5))
