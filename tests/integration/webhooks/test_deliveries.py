"""Deliveries of webhooks: signed, sent at least once under one id, tried again, given up, and forgotten."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import openai
import pytest
from openai import InvalidWebhookSignatureError
from sqlalchemy import Engine, func, select, text, update
from webhook_receivers import DOWN, OK, SUCCEEDED, endpoint_of

from zhub.database.sessions import system_session, tenant_session
from zhub.ids import public_id
from zhub.models import WebhookDelivery, WebhookEndpoint
from zhub.tenancy.keys import Caller
from zhub.webhooks import deliveries, endpoints, outbox
from zhub.webhooks.deliveries import Due
from zhub.webhooks.safe_http import Outcome

MakeCaller = Callable[..., Caller]
MakeEndpoint = Callable[..., uuid.UUID]


@pytest.mark.parametrize(
    "event_type", ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
)
def test_the_unmodified_client_verifies_and_parses_a_delivery(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    secret_key: str, event_type: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue(event_type, "ftjob-7")
    (due,) = claim()
    headers = due.headers(secret_key, deliveries.now_utc())
    client = openai.OpenAI(api_key="unused")
    secret = endpoints.secret_of(endpoint_id, 0, secret_key)
    event: Any = client.webhooks.unwrap(due.body(), headers, secret=secret)
    assert (event.type, event.data.id, event.object) == (event_type, "ftjob-7", "event")
    assert event.id == headers["webhook-id"] and event.created_at == int(due.created_at.timestamp())
    for wrong in (due.body().replace("7", "8"), due.body() + " "):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(wrong, headers, secret=secret)
    client.close()


def test_a_delivery_has_one_id_and_one_body_over_all_its_tries(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], hurry: Callable[[], None], secret_key: str,
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    sent = set()
    for _ in range(3):
        (due,) = claim()
        sent.add((due.headers(secret_key, deliveries.now_utc())["webhook-id"], due.body()))
        record(due, DOWN)
        hurry()
    assert len(sent) == 1


def test_what_is_being_sent_is_nobody_elses(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]]
) -> None:
    make_endpoint()
    enqueue()
    assert (len(claim()), claim()) == (1, [])


def claims_run_out(engine: Engine) -> None:
    with system_session(engine) as session:
        later = timedelta(seconds=deliveries.CLAIM_S)
        session.execute(update(WebhookDelivery).values(next_try_at=WebhookDelivery.next_try_at - later))
        session.execute(update(WebhookEndpoint).values(sending_until=WebhookEndpoint.sending_until - later))


def test_what_a_relay_forgot_by_dying_is_sent_again(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]],
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    (before,) = claim()
    claims_run_out(system_engine)
    assert [due.event_id for due in claim()] == [before.event_id]


def test_an_endpoint_gets_one_event_at_a_time_and_the_oldest_first_whoever_sends(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    make_endpoint()
    for job in ("ftjob-1", "ftjob-2"):
        enqueue(job=job)
    (first,) = claim()
    assert first.data["id"] == "ftjob-1"
    assert claim() == []  # as another relay, with nothing of its own in flight
    record(first, OK)
    assert [due.data["id"] for due in claim()] == ["ftjob-2"]


def test_of_relays_that_claim_at_the_same_time_one_gets_an_endpoint(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    make_endpoint()
    for number in range(4):
        enqueue(job=f"ftjob-{number}")
    sent = []
    with ThreadPoolExecutor(6) as pool:
        while found := [due for some in pool.map(lambda _: claim(), range(6)) for due in some]:
            (due,) = found
            sent.append(due.data["id"])
            record(due, OK)
    assert sent == [f"ftjob-{number}" for number in range(4)]


def test_a_try_that_is_recorded_late_does_not_free_the_endpoint_for_a_third(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery],
) -> None:  # fmt: skip
    make_endpoint()
    for job in ("ftjob-1", "ftjob-2", "ftjob-3"):
        enqueue(job=job)
    (slow,) = claim()
    claims_run_out(system_engine)
    (second,) = claim()
    record(slow, OK)
    assert (slow.data["id"], second.data["id"], claim()) == ("ftjob-1", "ftjob-2", [])
    record(second, OK)
    assert [due.data["id"] for due in claim()] == ["ftjob-3"]


def test_an_organisation_whose_receivers_hang_leaves_room_for_others(
    make_caller: MakeCaller, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], caller: Caller,
) -> None:  # fmt: skip
    other = make_caller("globex")
    for _ in range(4):
        make_endpoint()
    make_endpoint(owner=other)
    enqueue()
    enqueue(owner=other)
    first = claim(room_of_org=3)
    assert sorted(due.org_id for due in first) == sorted([caller.org_id] * 3 + [other.org_id])
    assert claim(first, room_of_org=3) == []
    assert len(claim(first[1:], room_of_org=3)) == (1 if first[0].org_id == caller.org_id else 0)


def test_what_fails_is_tried_again_for_three_days_and_then_given_up(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()
    waits = []
    for _ in range(outbox.MAX_TRIES):
        (due,) = claim()
        delivery = record(due, DOWN)
        attempt = delivery.attempts[-1]
        waits.append((attempt["next_try_at"] or attempt["at"]) - attempt["at"])
        hurry()
    assert waits[-1] == 0 and claim() == []
    for waited, planned in zip(waits, outbox.BACK_OFFS_S, strict=False):
        assert planned * 0.9 - 1 <= waited <= planned * 1.1 + 1
    assert 3 * 86_400 * 0.9 <= sum(waits) <= 3.2 * 86_400 * 1.1
    assert [attempt["status_code"] for attempt in delivery.attempts] == [503] * outbox.MAX_TRIES
    assert endpoint_of(system_engine, endpoint_id).status == "disabled"


def test_an_endpoint_that_took_something_meanwhile_is_not_disabled(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue(job="ftjob-bad")
    for number in range(outbox.MAX_TRIES):
        hurry()
        (due,) = claim()
        record(due, DOWN)
        if number == 0:
            enqueue(job="ftjob-good")
            (good,) = claim()
            record(good, OK)
    assert (due.data["id"], good.data["id"]) == ("ftjob-bad", "ftjob-good")
    hurry()
    assert (claim(), endpoint_of(system_engine, endpoint_id).status) == ([], "enabled")


def test_a_receiver_that_is_gone_is_sent_nothing_more_and_the_others_are_told(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None],
    claim: Callable[..., list[Due]], record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    gone = make_endpoint([SUCCEEDED])
    make_endpoint([endpoints.DISABLED])
    enqueue()
    enqueue()
    (due,) = claim()
    record(due, Outcome(410, None, 0.01))
    found = endpoint_of(system_engine, gone)
    assert (found.status, found.status_details) == ("disabled", "It answered 410 Gone.")
    hurry()
    assert [(due.type, due.data["id"]) for due in claim()] == [
        (endpoints.DISABLED, public_id("webhook endpoint", gone)),
    ]


def test_what_is_delivered_is_not_sent_again(
    make_endpoint: MakeEndpoint, enqueue: Callable[..., None], claim: Callable[..., list[Due]],
    record: Callable[..., WebhookDelivery], hurry: Callable[[], None],
) -> None:  # fmt: skip
    make_endpoint()
    enqueue()
    (due,) = claim()
    delivery = record(due, OK)
    hurry()
    assert delivery.delivered_at is not None and claim() == []


def test_for_a_day_after_a_rotation_both_secrets_sign(
    api_engine: Engine, system_engine: Engine, caller: Caller, make_endpoint: MakeEndpoint,
    enqueue: Callable[..., None], claim: Callable[..., list[Due]], hurry: Callable[[], None], secret_key: str,
) -> None:  # fmt: skip
    endpoint_id = make_endpoint()
    enqueue()

    def who_verifies() -> list[int]:
        hurry()
        (due,) = claim()
        headers = due.headers(secret_key, deliveries.now_utc())
        client = openai.OpenAI(api_key="unused")
        able = []
        for rotation in range(3):
            try:
                client.webhooks.unwrap(
                    due.body(), headers, secret=endpoints.secret_of(endpoint_id, rotation, secret_key)
                )
                able.append(rotation)
            except InvalidWebhookSignatureError:
                pass
        client.close()
        return able

    def rotate(keep_old: bool) -> None:
        with tenant_session(api_engine, caller.org_id) as session:
            endpoints.rotate_secret(session, endpoints.get_endpoint(session, caller, endpoint_id), keep_old=keep_old)

    assert who_verifies() == [0]
    rotate(keep_old=True)
    assert who_verifies() == [0, 1]
    with system_session(system_engine) as session:
        a_day = endpoints.OLD_SECRET_FOR
        session.execute(update(WebhookEndpoint).values(old_secret_until=WebhookEndpoint.old_secret_until - a_day))
    assert who_verifies() == [1]
    rotate(keep_old=False)
    assert who_verifies() == [2]


def test_no_secret_is_in_the_database(
    system_engine: Engine, make_endpoint: MakeEndpoint, enqueue: Callable[..., None], secret_key: str
) -> None:
    endpoint_id = make_endpoint()
    enqueue()
    secret = endpoints.secret_of(endpoint_id, 0, secret_key).removeprefix("whsec_")
    with system_session(system_engine) as session:
        for table in ("webhook_endpoints", "webhook_deliveries"):
            (row,) = session.scalars(text(f"SELECT to_jsonb(t)::text FROM {table} t"))
            assert secret not in row


def test_old_deliveries_and_then_deleted_endpoints_are_forgotten(
    system_engine: Engine, api_engine: Engine, caller: Caller, make_endpoint: MakeEndpoint, enqueue: Callable[..., None]
) -> None:
    deleted, kept = make_endpoint(), make_endpoint()
    enqueue()
    with tenant_session(api_engine, caller.org_id) as session:
        endpoints.delete_endpoint(session, endpoints.get_endpoint(session, caller, deleted))
    with system_session(system_engine) as session:
        deliveries.forget(session)
        assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 2
        session.execute(update(WebhookDelivery).values(created_at=func.now() - deliveries.KEPT_FOR))
        session.execute(update(WebhookDelivery).values(created_at=WebhookDelivery.created_at - timedelta(seconds=1)))
        deliveries.forget(session)
        assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 0
        assert list(session.scalars(select(WebhookEndpoint.id))) == [kept]
