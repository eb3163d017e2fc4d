"""Receivers that say when they want to be asked again."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime

import pytest
from sqlalchemy import Engine, update
from webhook_receivers import OK, SUCCEEDED, endpoint_of, refusal

from zhub.database.sessions import system_session, tenant_session
from zhub.models import WebhookDelivery, WebhookEndpoint
from zhub.tenancy.keys import Caller
from zhub.webhooks import deliveries, endpoints, outbox
from zhub.webhooks.deliveries import Due

MakeEndpoint = Callable[..., uuid.UUID]


def wait_of(delivery: WebhookDelivery) -> float:
    attempt = delivery.attempts[-1]
    return float(attempt["next_try_at"] - attempt["at"])


@pytest.mark.parametrize("status", [307, 404, 429, 500, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_a_receiver_is_asked_again_when_it_wants_to_be(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], status: int, as_date: bool,
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    (due,) = claim()
    moment = format_datetime(deliveries.now_utc() + timedelta(seconds=3600), usegmt=True)
    delivery = record(due, refusal(moment if as_date else "3600", status))
    assert 3600 - 60 * as_date <= wait_of(delivery) <= 3600 * (1 + deliveries.JITTER) + 1


def test_its_other_events_wait_as_well_and_other_receivers_do_not(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    busy, free = make_endpoint([SUCCEEDED]), make_endpoint()
    for job in ("ftjob-1", "ftjob-2"):
        enqueue(job=job)
    first = {due.endpoint_id: due for due in claim()}
    record(first[busy], refusal("60"))
    record(first[free], OK)
    enqueue(job="ftjob-3")
    (other,) = claim()
    assert (other.endpoint_id, other.data["id"]) == (free, "ftjob-2")
    record(other, OK)
    with system_session(system_engine) as session:
        session.execute(update(WebhookEndpoint).values(not_before=WebhookEndpoint.not_before - timedelta(seconds=66)))
    assert {due.endpoint_id: due.data["id"] for due in claim()} == {busy: "ftjob-2", free: "ftjob-3"}


@pytest.mark.parametrize("status", [429, 410])
def test_what_the_old_address_answered_does_not_silence_the_new_one(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], status: int,
) -> None:  # fmt: skip
    endpoint = make_endpoint()
    enqueue(job="ftjob-1")
    (due,) = claim()
    with system_session(system_engine) as session:
        session.execute(update(WebhookEndpoint).values(url="https://elsewhere.example.com/"))
    record(due, refusal("3600", status))
    enqueue(job="ftjob-2")
    assert [(other.endpoint_id, other.data["id"]) for other in claim()] == [(endpoint, "ftjob-2")]


@pytest.mark.parametrize("soon", ["0", "1", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_receiver_is_never_asked_sooner_than_without_its_retry_after(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], hurry: Callable[[], None], soon: str,
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    for planned in outbox.BACK_OFFS_S:
        hurry()
        (due,) = claim()
        assert wait_of(record(due, refusal(soon))) >= planned * (1 - deliveries.JITTER) - 1


@pytest.mark.parametrize("late", ["86401", "9" * 500, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_receiver_puts_off_by_a_day_and_no_more(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], late: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    (due,) = claim()
    delivery = record(due, refusal(late))
    assert 86_400 <= wait_of(delivery) <= 86_400 * (1 + deliveries.JITTER) + 1
    assert endpoint_of(system_engine, endpoint_id).not_before == delivery.next_try_at


@pytest.mark.parametrize("given", ["", "-5", "1.5", "soon", "٣", "12 h", "Wed, 99 Foo 2030 00:00:00 GMT", "\xff", None])
def test_a_retry_after_that_makes_no_sense_is_ignored(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], given: str | None,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    (due,) = claim()
    assert wait_of(record(due, refusal(given))) <= outbox.BACK_OFFS_S[0] * (1 + deliveries.JITTER) + 1
    assert endpoint_of(system_engine, endpoint_id).not_before is None


def test_an_answer_of_success_puts_nothing_off(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    (due,) = claim()
    assert record(due, refusal("3600", 200)).delivered_at is not None
    assert endpoint_of(system_engine, endpoint_id).not_before is None


def test_a_receiver_that_grants_one_try_at_a_time_for_ever_is_disabled_however_much_waits(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    for number in range(5):
        enqueue(job=f"ftjob-{number}")
    tried = []
    for _ in range(outbox.MAX_TRIES):
        (due,) = claim()
        tried.append(due.data["id"])
        record(due, refusal("86400"))
        with system_session(system_engine) as session:
            later = timedelta(seconds=86_400 * 1.2)
            session.execute(update(WebhookDelivery).values(next_try_at=WebhookDelivery.next_try_at - later))
            session.execute(update(WebhookEndpoint).values(not_before=WebhookEndpoint.not_before - later))
    assert set(tried) == {"ftjob-0"}
    assert endpoint_of(system_engine, endpoint_id).status == "disabled"


@pytest.mark.parametrize("how", ["test", "replay", "enable", "url"])
def test_whoever_knows_better_does_not_wait_for_what_the_receiver_asked_for(
    api_engine: Engine, caller: Caller, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], how: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    for _ in range(2):
        enqueue()
    (due,) = claim()
    delivery = record(due, refusal("3600"))
    assert claim() == []
    with tenant_session(api_engine, caller.org_id) as session:
        endpoint = endpoints.get_endpoint(session, caller, endpoint_id)
        if how == "test":
            endpoints.send_test(session, endpoint, SUCCEEDED)
        elif how == "replay":
            deliveries.replay(session, endpoint, deliveries.get_delivery(session, endpoint, delivery.id))
        else:
            url = "https://other.example.com/" if how == "url" else None
            endpoints.update_endpoint(
                session, endpoint, name=None, url=url, event_types=None, enable=how == "enable", allow_private=False
            )
    assert [found.endpoint_id for found in claim()] == [endpoint_id]
