"""One organisation's requests, streams and graders leave room for the others', and it is told when to come again."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from suites import GRADER

from zhub.errors import TooManyAtOnceError, UnavailableError
from zhub.graders.processes import own_processes
from zhub.process.config import Settings
from zhub.process.shares import Shares
from zhub.tenancy.keys import Caller

RUN = {"grader": GRADER, "model_sample": "4", "item": {"answer": "4"}}
SLEEPING = RUN | {
    "grader": {
        "type": "python",
        "name": "asleep",
        "source": "import time\ndef grade(sample, item): time.sleep(100)",
        "timeout_s": 6,
    }
}
Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask_as(api_url: str, make_key: Callable[..., str]) -> Iterator[Ask]:
    """Send a request with the key of an organisation."""
    keys = {name: make_key(name) for name in ("acme", "umbrella")}
    with httpx.Client(base_url=api_url, timeout=30) as client:

        def ask(organization: str, method: str, path: str, body: Any = None) -> httpx.Response:
            headers = {"authorization": f"Bearer {keys[organization]}"}
            return client.request(method, path, headers=headers, json=body)

        yield ask


def is_refused_for_a_while(answer: httpx.Response) -> bool:
    return (
        answer.status_code == 429
        and answer.json()["error"]["code"] == "too_many_at_once"
        and answer.headers["retry-after"] == "1"
        and "x-should-retry" not in answer.headers
    )


def test_an_organisation_holds_no_more_places_than_its_share(make_caller: Callable[..., Caller]) -> None:
    acme, umbrella = make_caller("acme").org_id, make_caller("umbrella").org_id
    shares = Shares("turns", places=3, per_org=2)
    with shares.place(acme), shares.place(acme):
        with pytest.raises(TooManyAtOnceError, match="has 2 turns"):
            shares.take(acme)
        with shares.place(umbrella), pytest.raises(UnavailableError, match="serves 3 turns"):
            shares.take(umbrella)
    assert shares.held == 0
    shares.take(acme)


def test_sleeping_graders_of_one_organisation_do_not_hold_up_anothers(
    app: FastAPI, settings: Settings, ask_as: Ask, until: Callable[..., Any]
) -> None:
    share = settings.grader_runs_per_org
    with ThreadPoolExecutor(6) as threads:
        sleeping = [
            threads.submit(ask_as, "acme", "POST", "/fine_tuning/alpha/graders/run", SLEEPING) for _ in range(6)
        ]
        until(lambda: sum(asked.done() for asked in sleeping) == 6 - share)
        assert app.state.grader_runs.held == share
        others = ask_as("umbrella", "POST", "/fine_tuning/alpha/graders/run", RUN)
        assert (others.status_code, others.json()["reward"]) == (200, 1.0)
        assert ask_as("umbrella", "GET", "/files").status_code == 200
        refused = [asked.result() for asked in sleeping if asked.done()]
        assert all(map(is_refused_for_a_while, refused))
        assert app.state.grader_runs.held == share  # the others did not wait for them
    assert {asked.result().status_code for asked in sleeping} == {200, 429}


def test_requests_of_one_organisation_leave_threads_to_the_others(
    app: FastAPI, settings: Settings, ask_as: Ask, make_caller: Callable[..., Caller]
) -> None:
    acme = make_caller("acme").org_id
    for _ in range(settings.requests_per_org):
        app.state.threads.take(acme)
    assert is_refused_for_a_while(ask_as("acme", "GET", "/files"))
    assert ask_as("umbrella", "GET", "/files").status_code == 200
    app.state.threads.give_back(acme)
    assert [ask_as("acme", "GET", "/files").status_code for _ in range(3)] == [200, 200, 200]


def test_streams_of_one_organisation_leave_room_for_the_others(
    app: FastAPI,
    settings: Settings,
    ask_as: Ask,
    api_url: str,
    make_key: Callable[..., str],
    make_caller: Callable[..., Caller],
    make_job: Callable[..., Any],
) -> None:
    callers = {name: make_caller(name) for name in ("acme", "umbrella")}
    jobs = {name: f"/fine_tuning/jobs/ftjob-{make_job(caller).hex}" for name, caller in callers.items()}
    for _ in range(settings.streams_per_org):
        app.state.streams.shares.take(callers["acme"].org_id)
    assert is_refused_for_a_while(ask_as("acme", "GET", f"{jobs['acme']}/events?stream=true"))
    assert is_refused_for_a_while(ask_as("acme", "GET", f"{jobs['acme']}/logs?stream=true"))
    headers = {"authorization": f"Bearer {make_key('umbrella')}"}
    with httpx.stream("GET", f"{api_url}{jobs['umbrella']}/events?stream=true", headers=headers) as stream:
        assert stream.status_code == 200


def test_this_process_answers_while_a_schema_holds_the_interpreter(
    ask_as: Ask, api_url: str, make_caller: Callable[..., Caller]
) -> None:
    evil = {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}
    body = {
        "grader": {"type": "json_schema", "name": "evil", "json_schema": evil},
        "model_sample": '{"' + "a" * 34 + 'b": 1}',
    }
    answers: list[httpx.Response] = []
    running = threading.Thread(
        target=lambda: answers.append(ask_as("acme", "POST", "/fine_tuning/alpha/graders/run", body))
    )
    running.start()
    healthy, owners = 0, set[Any]()
    while running.is_alive():
        assert httpx.get(f"{api_url.removesuffix('/v1')}/healthz", timeout=10).status_code == 200
        healthy += 1
        owners |= set(own_processes()._held)
    assert healthy > 3
    # Graded in the organisation's share of the processes.
    assert owners == {make_caller("acme").org_id}
    answer = answers[0].json()
    assert (answer["reward"], answer["metadata"]["errors"]["unresponsive_reward_error"]) == (0.0, True)
    assert "took longer than 2 s" in answer["metadata"]["detail"]


def test_an_item_that_is_too_large_is_refused(ask_as: Ask) -> None:
    answer = ask_as(
        "acme", "POST", "/fine_tuning/alpha/graders/run", RUN | {"item": {"answer": "4", "x": "x" * 1_000_001}}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "item")
