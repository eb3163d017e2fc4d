"""Costs: quantities of each day, by the prices of that day; what has no price has no cost."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import openai
import pytest
from sqlalchemy import Engine, text

from zhub.cli.database_operations import set_price
from zhub.database.sessions import system_session, tenant_session
from zhub.embedded.postgres import Urls
from zhub.errors import ConflictError, InvalidRequestError
from zhub.ids import public_id
from zhub.models import Price, StoredUsage, TokenUsage, WorkerUsage
from zhub.tenancy import costs
from zhub.tenancy.costs import Cost, Filter, Group
from zhub.tenancy.keys import Caller
from zhub_api.routes.organization_usage import start_of

Client = openai.OpenAI
FIRST = date(2026, 2, 1)
LATER = FIRST + timedelta(days=10)


def price(engine: Engine, item: str, amount: str, *, subject: str = "", valid_from: date = FIRST) -> None:
    with system_session(engine) as session:
        row = {"item": item, "subject": subject, "amount": Decimal(amount), "currency": "EUR"}
        session.add(Price(valid_from=valid_from, **row))


def worked(engine: Engine, caller: Caller, day: date, hours: float, **columns: Any) -> None:
    named = {"cluster": "default", "kind": "train", "expert": "main.sums", "base_model": "tiny", "trained_tokens": 0}
    own = {"org_id": caller.org_id, "project_id": caller.project_id}
    with system_session(engine) as session:
        session.add(WorkerUsage(day=day, worker_seconds=3600 * hours, **(own | named | columns)))


def answered(engine: Engine, caller: Caller, hour: datetime, experts: str = "main.sums@v3") -> None:
    """A million and a half tokens read, half a million of these again, and two million written."""
    counts = {"requests": 1, "prompt_tokens": 1_500_000, "cached_tokens": 500_000, "completion_tokens": 2_000_000}
    own = {"org_id": caller.org_id, "project_id": caller.project_id, "key_id": caller.key_id}
    with system_session(engine) as session:
        session.add(TokenUsage(hour=hour, base_model="tiny", experts=experts, **counts, **own))


def report(engine: Engine, caller: Caller, *groups: Group, only: Filter = Filter()) -> list[Cost]:
    with tenant_session(engine, caller.org_id) as session:
        return costs.report(session, caller.org_id, FIRST, FIRST + timedelta(days=28), groups, only)


def lines(rows: list[Cost]) -> dict[str, Decimal | None]:
    return {row.line.name: row.amount for row in rows}


def test_a_day_is_priced_by_what_held_on_it(system_engine: Engine, caller: Caller) -> None:
    price(system_engine, "worker_hours", "2.10")
    price(system_engine, "worker_hours", "3", valid_from=LATER)
    for day in (FIRST, LATER - timedelta(days=1), LATER):
        worked(system_engine, caller, day, 1.5)
    assert [row.amount for row in report(system_engine, caller)] == [Decimal("3.15"), Decimal("3.15"), Decimal("4.5")]


def test_a_clusters_own_price_goes_before_that_of_all(system_engine: Engine, caller: Caller) -> None:
    price(system_engine, "worker_hours", "40", subject="gpu")
    price(system_engine, "worker_hours", "1", valid_from=FIRST + timedelta(days=1))
    for cluster in ("default", "gpu"):
        worked(system_engine, caller, LATER, 2, cluster=cluster)
    assert lines(report(system_engine, caller)) == {"worker hours, default": 2, "worker hours, gpu": 80}


def test_tokens_are_priced_by_the_million_and_those_read_again_by_themselves(
    system_engine: Engine, caller: Caller
) -> None:
    for item, amount in (("input_tokens", "0.30"), ("cached_input_tokens", "0.03"), ("output_tokens", "1.20")):
        price(system_engine, item, amount)
    answered(system_engine, caller, datetime(2026, 2, 3, 23, tzinfo=UTC))
    rows = report(system_engine, caller, "expert")
    assert {row.day for row in rows} == {date(2026, 2, 3)}
    assert lines(rows) == {
        "input tokens, tiny": Decimal("0.30"),
        "cached input tokens, tiny": Decimal("0.015"),
        "output tokens, tiny": Decimal("2.40"),
    }


def test_training_and_answers_of_an_expert_are_one_group(system_engine: Engine, caller: Caller) -> None:
    price(system_engine, "worker_hours", "1")
    price(system_engine, "output_tokens", "1")
    worked(system_engine, caller, FIRST, 1)
    for experts in ("main.sums@v3", "main.sums@v3 + main.dates:ckpt-step-4"):
        answered(system_engine, caller, datetime(2026, 2, 1, 3, tzinfo=UTC), experts)
    priced = [row for row in report(system_engine, caller, "expert") if row.amount is not None]
    assert [(row.group["expert"], row.line.item, row.amount) for row in priced] == [
        ("main.sums", "output_tokens", Decimal(2)),
        ("main.sums", "worker_hours", Decimal(1)),
        ("main.sums + main.dates", "output_tokens", Decimal(2)),
    ]


def test_a_gib_that_is_stored_all_month_costs_a_months_price(system_engine: Engine, caller: Caller) -> None:
    price(system_engine, "storage", "0.28")
    own = {"org_id": caller.org_id, "project_id": caller.project_id}
    with system_session(system_engine) as session:
        for day in range(1, 29):
            sampled = datetime(2026, 2, day, 23, tzinfo=UTC)
            session.add(StoredUsage(day=sampled.date(), byte_hours=24 << 30, sampled_at=sampled, **own))
    assert costs.total(report(system_engine, caller)).amount == pytest.approx(Decimal("0.28"))


def test_what_has_no_price_has_no_cost_and_is_named(system_engine: Engine, caller: Caller) -> None:
    worked(system_engine, caller, FIRST, 1)
    assert costs.total(report(system_engine, caller)) == costs.Total(None, ["worker hours, default"])
    price(system_engine, "output_tokens", "1")
    answered(system_engine, caller, datetime(2026, 2, 1, tzinfo=UTC))
    unpriced = ["cached input tokens, tiny", "input tokens, tiny", "worker hours, default"]
    assert costs.total(report(system_engine, caller)) == costs.Total(Decimal(2), unpriced)


def test_a_tenant_sees_its_own_costs_alone(
    system_engine: Engine, caller: Caller, make_caller: Callable[..., Caller]
) -> None:
    worked(system_engine, caller, FIRST, 1)
    stranger = make_caller("umbrella")
    assert report(system_engine, stranger) == []
    with tenant_session(system_engine, stranger.org_id) as session:
        assert costs.report(session, stranger.org_id, FIRST, LATER, (), Filter()) == []


def test_the_unmodified_client_reads_the_costs(serve_costs: Client, system_engine: Engine, caller: Caller) -> None:
    price(system_engine, "worker_hours", "2")
    worked(system_engine, caller, FIRST, 1.5)
    answered(system_engine, caller, datetime(2026, 2, 1, tzinfo=UTC))
    asked: dict[str, Any] = {"start_time": start_of(FIRST) + 60, "end_time": start_of(FIRST) + 86_400}
    read = serve_costs.admin.organization.usage.costs
    (whole,) = [result for bucket in read(**asked).data for result in bucket.results]
    assert whole.object == "organization.costs.result"
    assert whole.amount is not None
    assert (whole.amount.value, whole.amount.currency, whole.line_item) == (3.0, "eur", None)
    divided = read(**asked, group_by=["line_item", "project_id"])
    (*_, hours) = [result for bucket in divided.data for result in bucket.results]
    assert hours.object == "organization.costs.result"
    assert (hours.line_item, hours.quantity, hours.quantity_unit) == ("worker hours, default", 1.5, "duration_hours")
    assert hours.project_id == public_id("project", caller.project_id)
    (line,) = read(**asked, group_by=["line_item"], line_items=["output tokens, tiny"]).data[0].results
    assert line.object == "organization.costs.result"
    assert (line.amount, line.quantity) == (None, 2_000_000)


@pytest.fixture
def serve_costs(client: Client) -> Client:
    return client.with_options(admin_api_key=client.api_key)


def today() -> date:
    return datetime.now(UTC).date()


def set_hour(database: Urls, amount: str, **options: Any) -> None:
    asked = {"subject": "", "currency": None, "valid_from": None} | options
    set_price(database.system, "worker_hours", Decimal(amount), **asked)


def test_a_first_price_holds_today_and_the_next_one_tomorrow(
    database: Urls, capsys: pytest.CaptureFixture[str]
) -> None:
    set_hour(database, "2.50", currency="EUR")
    assert f"worker-hours for all: 2.50 EUR an hour of a worker from {today()} (UTC) on." in capsys.readouterr().err
    set_hour(database, "3")
    assert f"from {today() + timedelta(days=1)} (UTC) on" in capsys.readouterr().err


def test_a_price_that_would_change_the_past_is_refused(database: Urls) -> None:
    set_hour(database, "2.50", currency="EUR", valid_from=FIRST)
    with pytest.raises(InvalidRequestError, match="what days have cost does not change"):
        set_hour(database, "1", subject="gpu", valid_from=today())
    set_hour(database, "1", valid_from=today() + timedelta(days=3))
    with pytest.raises(ConflictError, match="has a price from .* on already: 1 EUR"):
        set_hour(database, "2", valid_from=today() + timedelta(days=3))


def test_a_list_has_one_currency(database: Urls) -> None:
    with pytest.raises(InvalidRequestError, match="The first price says the currency"):
        set_hour(database, "1")
    with pytest.raises(InvalidRequestError, match="ISO 4217"):
        set_hour(database, "1", currency="euro")
    set_hour(database, "1", currency="EUR")
    with pytest.raises(ConflictError, match="All prices are in EUR"):
        set_hour(database, "1", currency="USD")


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity", "1e10"])
def test_what_is_no_price_is_refused(database: Urls, amount: str) -> None:
    with pytest.raises(InvalidRequestError, match="Expected a price from 0"):
        set_hour(database, amount, currency="EUR")


def test_nobody_changes_a_price(system_engine: Engine) -> None:
    price(system_engine, "worker_hours", "1")
    for change in ("UPDATE prices SET amount = 0", "DELETE FROM prices"):
        with pytest.raises(Exception, match="permission denied"), system_session(system_engine) as session:
            session.execute(text(change))
