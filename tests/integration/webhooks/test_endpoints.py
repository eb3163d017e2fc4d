"""Endpoints of webhooks through the API: managed, limited, refused, and their deliveries in pages."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from webhook_receivers import SUCCEEDED, add

from zhub.process.config import Settings
from zhub.webhooks import endpoints

MakeEndpoint = Callable[..., uuid.UUID]
Client = openai.OpenAI


def test_the_client_manages_endpoints(client: Client) -> None:
    made = add(client, "https://hook.example.com/a")
    client.webhooks.update(made.id, name="renamed", url="https://hook.example.com/b")
    (listed,) = client.webhooks.list()
    assert (listed.name, listed.url, listed.event_types) == ("renamed", "https://hook.example.com/b", [SUCCEEDED])
    assert client.webhooks.rotate_secret(made.id).signing_secret != made.signing_secret
    assert SUCCEEDED in client.webhooks.event_types.list().data
    assert client.webhooks.delete(made.id).deleted
    assert list(client.webhooks.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_deliveries_come_in_pages(client: Client, enqueue: Callable[..., None]) -> None:
    made = add(client, "https://hook.example.com/")
    for number in range(5):
        enqueue(job=f"ftjob-{number}")
    job_ids: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer: Any = client.get(
            f"/webhook_endpoints/{made.id}/deliveries",
            cast_to=object,
            options={"params": {"limit": "2", **after}},
        )
        job_ids += [entry["data"]["id"] for entry in answer["data"]]
        if not answer["has_more"]:
            break
        after = {"after": answer["last_id"]}
    assert sorted(job_ids) == [f"ftjob-{number}" for number in range(5)]


def refused(client: Client, **body: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/webhook_endpoints", body=body, cast_to=object)
    return caught.value


def test_an_endpoint_that_makes_no_sense_is_refused_with_a_reason(client: Client) -> None:
    unknown = refused(client, url="https://hook.example.com/", event_types=["fine_tuning.job.exploded"])
    assert unknown.param == "event_types" and "fine_tuning.job.paused" in unknown.message
    none = refused(client, url="https://hook.example.com/", event_types=[])
    assert none.param == "event_types" and "at least one" in none.message
    metadata = refused(client, url="http://169.254.169.254/latest", event_types=[SUCCEEDED])
    assert (metadata.param, metadata.code) == ("url", "address_refused")


def test_a_project_has_so_many_endpoints_and_no_more(client: Client, make_endpoint: MakeEndpoint) -> None:
    for _ in range(endpoints.MAX_ENDPOINTS):
        make_endpoint()
    with pytest.raises(openai.RateLimitError) as refused:
        add(client, "https://hook.example.com/")
    assert refused.value.code == "quota_exceeded"


def test_without_the_operators_leave_an_endpoint_is_public_and_encrypted(
    serve: Callable[[Settings], str], settings: Settings, make_key: Callable[..., str]
) -> None:
    url = serve(settings)
    headers = {"authorization": f"Bearer {make_key()}"}
    for target, code in (("http://hook.example.com/", "invalid_request"), ("https://10.0.0.1/", "address_refused")):
        body = {"url": target, "event_types": [SUCCEEDED]}
        answer = httpx.post(f"{url}/webhook_endpoints", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_endpoints_are_found_by_their_status_url_and_name(client: Client, ask: Callable[..., Any]) -> None:
    first, second = add(client, "https://a.example.com/"), add(client, "https://b.example.com/")
    client.webhooks.update(second.id, name="Pager")

    def found(query: str) -> list[str]:
        return [endpoint["id"] for endpoint in ask("get", f"/webhook_endpoints?{query}")["data"]]

    assert (found("search=A.EXAMPLE"), found("search=pager")) == ([first.id], [second.id])
    assert found("status=enabled&order=asc") == [first.id, second.id] and found("status=disabled") == []
