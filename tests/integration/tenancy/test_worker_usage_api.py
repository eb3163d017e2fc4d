"""``/v1/organization/usage/workers``: days of workers' time, in pages, for who has used it."""

import uuid
from collections.abc import Callable
from datetime import date
from typing import Any

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.ids import public_id
from zhub.models import WorkerUsage
from zhub.tenancy.keys import Caller
from zhub_api.routes.organization_usage import start_of

Client = openai.OpenAI
DAY = 86_400
FIRST = start_of(date(2026, 3, 1))


def used(engine: Engine, caller: Caller, day: int, **columns: Any) -> None:
    named = {"cluster": "default", "kind": "train", "expert": "main.sums", "base_model": "tiny", "trained_tokens": 5}
    with system_session(engine) as session:
        session.add(
            WorkerUsage(
                org_id=caller.org_id,
                project_id=caller.project_id,
                day=date(2026, 3, day),
                **(named | {"worker_seconds": 60.0} | columns),
            )
        )


def asked(client: Client, **query: Any) -> dict[str, Any]:
    params = {"start_time": FIRST + 5, "end_time": FIRST + 3 * DAY} | query
    answer: Any = client.get("/organization/usage/workers", cast_to=object, options={"params": params})
    return dict(answer)


def results(answer: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [bucket["results"] for bucket in answer["data"]]


@pytest.fixture(autouse=True)
def three_days(system_engine: Engine, caller: Caller, make_caller: Callable[..., Caller]) -> None:
    used(system_engine, caller, 1, key_id=caller.key_id)
    used(system_engine, caller, 1, cluster="gpu")
    used(system_engine, caller, 3, kind="decompose", expert="")
    used(system_engine, make_caller("umbrella"), 1)


def test_days_without_a_group_are_sums_of_the_organisation(client: Client) -> None:
    answer = asked(client)
    first, second, third = results(answer)
    assert [row["worker_seconds"] for row in (*first, *second, *third)] == [120.0, 60.0]
    assert (first[0]["trained_tokens"], first[0]["project_id"]) == (10, None)
    assert second == []
    assert (answer["has_more"], answer["next_page"]) == (False, None)


def test_a_group_divides_each_day(client: Client, caller: Caller) -> None:
    first, _, third = results(asked(client, group_by=["cluster", "project_id"]))
    assert [(row["cluster"], row["worker_seconds"]) for row in first] == [("default", 60.0), ("gpu", 60.0)]
    assert {row["project_id"] for row in (*first, *third)} == {public_id("project", caller.project_id)}
    _, _, (decomposed,) = results(asked(client, group_by=["expert", "kind"]))
    assert (decomposed["expert"], decomposed["kind"]) == (None, "decompose")


def test_one_keys_time_is_reported(client: Client, caller: Caller) -> None:
    (only,), _, _ = results(asked(client, api_key_ids=[public_id("API key", caller.key_id)]))
    assert only["worker_seconds"] == 60.0
    nobody = {"project_ids": [public_id("project", uuid.uuid4())]}
    assert results(asked(client, **nobody)) == [[], [], []]


def test_pages_go_through_all_days(client: Client) -> None:
    first = asked(client, limit=2)
    assert (first["has_more"], len(first["data"])) == (True, 2)
    last = asked(client, limit=2, page=first["next_page"])
    assert [bucket["start_time"] for bucket in (*first["data"], *last["data"])] == [FIRST, FIRST + DAY, FIRST + 2 * DAY]
    assert last["has_more"] is False
    assert refused(lambda: asked(client, page="page_1")).param == "page"
