"""Commands on webhooks."""

import json
from collections.abc import Callable
from typing import Any

import api_double
import api_examples
import pytest

Run = Callable[..., int]


def test_a_new_webhook_asks_for_every_event_and_shows_its_secret_on_standard_output(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("webhooks", "add", "https://hook.example.com/") == 0
    (asked,) = [json.loads(request.content) for request in api.requests if request.method == "POST"]
    assert asked["event_types"] == api_examples.ENDPOINT["event_types"]
    shown = capsys.readouterr()
    assert api_examples.SECRET in shown.out and api_examples.SECRET not in shown.err


def test_a_webhook_can_be_asked_to_send_some_events_only(zhub: Run, api: Any) -> None:
    assert zhub("webhooks", "add", "https://x.example/", "--event", "a.b", "--event", "c.d", "--json") == 0
    assert json.loads(api.requests[-1].content)["event_types"] == ["a.b", "c.d"]


def test_a_leaked_secret_of_a_webhook_signs_nothing_more(zhub: Run, api: Any) -> None:
    assert zhub("webhooks", "rotate", "whe-1", "--leaked") == 0
    assert json.loads(api.requests[-1].content) == {"keep_old_secret_active_for_24_hours": False}


def test_deliveries_say_how_the_last_try_went_and_when_the_next_one_is(
    zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("webhooks", "deliveries", "whe-1") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("whd-1")]
    assert "pending" in line and "answered 503; next try 20" in line


@pytest.mark.parametrize(
    "arguments",
    [("ls",), ("rm", "whe-1"), ("replay", "whe-1", "whd-1")],
    ids=lambda arguments: " ".join(arguments),
)
def test_webhooks_are_listed_removed_and_replayed(zhub: Run, arguments: tuple[str, ...]) -> None:
    assert zhub("webhooks", *arguments) == 0


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ({"not_before": 1_700_000_000}, "Its receiver asked for no events before"),
        ({"not_before": 1_700_000_000, "status": "disabled", "status_details": "It answered 410 Gone."}, "410 Gone"),
    ],
)
def test_a_list_of_webhooks_says_why_nothing_is_sent(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str], endpoint: dict[str, Any], shown: str
) -> None:
    api.add("GET", "/v1/webhook_endpoints", api_double.page([api_examples.ENDPOINT | endpoint]))
    assert zhub("webhooks", "ls", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["not_before"] == 1_700_000_000
    assert zhub("webhooks", "ls") == 0
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("success", "code"), [(True, 0), (False, 1)])
def test_a_test_of_a_webhook_exits_as_it_went(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str], success: bool, code: int
) -> None:
    result = {"webhook_endpoint_id": "whe-1", "event_type": "fine_tuning.job.succeeded", "delivery_id": "whd-1"}
    answer = {"success": success, "status_code": 204 if success else None, "error": None if success else "No way."}
    api.add("POST", "/v1/webhook_endpoints/whe-1/test", result | answer)
    assert zhub("webhooks", "test", "whe-1") == code
    assert ("answered 204" if success else "not delivered. No way.") in capsys.readouterr().err
