"""Events that the scheduler's relay sends to receivers on this machine."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from webhook_receivers import SUCCEEDED, Receivers, add, deliveries_of

Until = Callable[..., Any]
Client = openai.OpenAI


def test_an_event_arrives_signed_with_the_secret_that_was_shown_once(
    client: Client, receivers: Receivers, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    made = add(client, f"{receivers.url}/hook")
    enqueue(job="ftjob-7")
    (delivered,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["status"] == "delivered"])
    ((path, headers, body),) = receivers.requests
    event: Any = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert (path, event.type, event.data.id) == ("/hook", SUCCEEDED, "ftjob-7")
    assert delivered["event_id"] == headers["webhook-id"]
    assert [attempt["status_code"] for attempt in delivered["attempts"]] == [204]
    shown = client.webhooks.retrieve(made.id)
    assert made.signing_secret not in shown.to_json() and made.signing_secret.endswith(
        (shown.signing_secret_hint or "").removeprefix("whsec_…")
    )


def test_a_receiver_that_hangs_delays_no_other(
    client: Client, receivers: Receivers, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    receivers.hanging.add("/slow")
    add(client, f"{receivers.url}/slow")
    enqueue()
    until(lambda: receivers.requests)
    add(client, f"{receivers.url}/fast")
    for number in range(5):
        enqueue(job=f"ftjob-{number}")
    until(lambda: [path for path, *_ in receivers.requests].count("/fast") == 5)
    assert [path for path, *_ in receivers.requests].count("/slow") == 1


def test_the_owner_of_an_endpoint_sees_what_its_receiver_asked_for(
    client: Client, receivers: Receivers, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    receivers.statuses["/hook"], receivers.retry_after = 503, b"3600"
    made = add(client, f"{receivers.url}/hook")
    assert made.to_dict()["not_before"] is None
    enqueue()
    (delivery,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["attempts"]])
    (attempt,) = delivery["attempts"]
    assert attempt["at"] + 3600 <= attempt["next_try_at"] == delivery["next_try_at"]
    assert client.webhooks.retrieve(made.id).to_dict()["not_before"] == delivery["next_try_at"]


def test_a_test_is_sent_the_way_of_real_events_and_says_what_came_back(
    client: Client, receivers: Receivers, relaying: None
) -> None:
    made = add(client, f"{receivers.url}/hook")
    result: Any = client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert (result.success, result.status_code, result.event_type) == (True, 204, "fine_tuning.job.failed")
    receivers.statuses["/hook"] = 500
    result = client.webhooks.test(made.id, event_type=SUCCEEDED)
    assert (result.success, result.status_code) == (False, 500)
    ((_, headers, body), _) = receivers.requests
    event: Any = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert event.data.test is True
    # One try and no more, and the endpoint stays: it was only asked.
    assert [d["status"] for d in deliveries_of(client, made.id)] == ["failed", "delivered"]
    assert client.webhooks.retrieve(made.id).to_dict()["status"] == "enabled"


def test_an_event_that_was_given_up_can_be_replayed_under_its_old_id(
    client: Client, receivers: Receivers, relaying: None, enqueue: Callable[..., None], until: Until
) -> None:
    receivers.statuses["/hook"] = 410
    made = add(client, f"{receivers.url}/hook")
    enqueue()
    (failed,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["status"] == "failed"])
    replay = f"/webhook_endpoints/{made.id}/deliveries/{failed['id']}/replay"
    with pytest.raises(openai.ConflictError, match="410 Gone"):
        client.post(replay, body={}, cast_to=object)
    receivers.statuses.clear()
    client.webhooks.update(made.id, extra_body={"status": "enabled"})
    client.post(replay, body={}, cast_to=object)
    (delivered,) = until(lambda: [d for d in deliveries_of(client, made.id) if d["status"] == "delivered"])
    assert [attempt["status_code"] for attempt in delivered["attempts"]] == [410, 204]
    assert len({headers["webhook-id"] for _, headers, _ in receivers.requests}) == 1
