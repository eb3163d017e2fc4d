"""Tokens of models are added up for who asked: by hour, project, key, base and experts, and reported."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from api_requests import refused
from fastapi import FastAPI
from scripted_serving import BROKEN, Script, scripted
from sqlalchemy import Engine

from zhub.answering import ChosenExpert
from zhub.database.sessions import tenant_session
from zhub.generation import Embeddings, Ended, Started, Text
from zhub.ids import public_id
from zhub.process.config import Settings
from zhub.tenancy import token_usage
from zhub.tenancy.keys import Caller
from zhub.tenancy.token_usage import Filter, Tokens, UsedBy
from zhub_api import metering
from zhub_api.metering import Meter

Client = openai.OpenAI
STARTED = Started(strategy="base", experts=[], reason="by name", prompt_tokens=10)
EXPERT = STARTED.model_copy(
    update={"experts": [ChosenExpert(name="main.sums@v1", digest="d", weight=1.0)], "strategy": "expert"}
)
ENDED = Ended(finish_reason="stop", completion_tokens=5, cached_tokens=4)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def used_by(caller: Caller, hour: datetime = NOON, experts: str = "") -> UsedBy:
    return UsedBy(caller.org_id, caller.project_id, caller.key_id, hour, "tiny", experts)


def total(engine: Engine, caller: Caller) -> Tokens:
    with tenant_session(engine, caller.org_id) as session:
        found = token_usage.report(session, NOON - timedelta(days=9999), datetime.now(UTC), "1d", [], Filter())
    return sum((row.tokens for row in found), Tokens())


def test_what_is_counted_twice_is_added_up(api_engine: Engine, caller: Caller) -> None:
    meter = Meter(api_engine, clock=lambda: NOON)
    for _ in range(2):
        meter.note(caller, "tiny", [], Tokens(1, 10, 4, 5))
        meter.note(caller, "tiny", ["main.a@v1", "main.b@v2"], Tokens(1, 1, 0, 1))
        meter.flush()
    with tenant_session(api_engine, caller.org_id) as session:
        rows = token_usage.report(session, NOON, NOON + timedelta(hours=1), "1h", ["experts"], Filter())
    assert {row.group["experts"]: row.tokens for row in rows} == {
        "": Tokens(2, 20, 8, 10),
        "main.a@v1 + main.b@v2": Tokens(2, 2, 0, 2),
    }


def test_usage_is_kept_while_the_database_is_away_and_added_later(
    api_engine: Engine, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(api_engine, clock=lambda: NOON)
    meter.note(caller, "tiny", [], Tokens(1, 10, 0, 5))

    def away(*_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(metering, "tenant_session", away)
        meter.flush()
        meter.note(caller, "tiny", [], Tokens(1, 1, 0, 1))
    assert total(api_engine, caller) == Tokens()
    meter.flush()
    meter.flush()
    assert total(api_engine, caller) == Tokens(2, 11, 0, 6)


def test_what_waits_for_the_database_is_bounded(
    api_engine: Engine, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "MAX_PENDING", 2)
    meter = Meter(api_engine, clock=lambda: NOON)
    before = metering.NOT_METERED._value.get()
    for name in ("a", "b", "c", "a"):
        meter.note(caller, name, [], Tokens(1, 1, 0, 0))
    meter.flush()
    assert total(api_engine, caller).requests == 3
    assert metering.NOT_METERED._value.get() == before + 1


def test_a_tenant_sees_and_changes_its_own_usage_alone(
    api_engine: Engine, caller: Caller, make_caller: Callable[..., Caller]
) -> None:
    stranger = make_caller("umbrella")
    with tenant_session(api_engine, caller.org_id) as session:
        token_usage.add(session, caller.org_id, {used_by(caller): Tokens(1, 1, 0, 1)})
    assert total(api_engine, stranger) == Tokens()
    with pytest.raises(Exception, match="row-level security"), tenant_session(api_engine, stranger.org_id) as session:
        token_usage.add(session, caller.org_id, {used_by(caller, NOON + timedelta(hours=1)): Tokens(1, 1, 0, 1)})
    assert total(api_engine, caller) == Tokens(1, 1, 0, 1)


@pytest.fixture
def script() -> Script:
    return []


@pytest.fixture
def asked_api(
    settings: Settings,
    run_server: Callable[[FastAPI], str],
    serve: Callable[[Settings], str],
    script: Script,
    make_key: Callable[..., str],
    make_base_model: Callable[..., uuid.UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Client]:
    """The API before a scripted serving; what is used is added at once."""
    monkeypatch.setattr(metering, "FLUSH_S", 0.01)
    make_base_model(is_default=True)
    embedded = [Embeddings(vectors=[[1.0]], prompt_tokens=3)]
    url = run_server(scripted(script, [], embedded)).removesuffix("/v1")
    api = serve(settings.model_copy(update={"serving_url": url}))
    key = make_key()
    with Client(base_url=api, api_key=key, admin_api_key=key, max_retries=0) as client:
        yield client


def chat(client: Client) -> Any:
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])


def results(client: Client, **options: Any) -> list[Any]:
    start = int((datetime.now(UTC) - timedelta(hours=2)).timestamp())
    answer = client.admin.organization.usage.completions(**({"start_time": start} | options))
    return [result for bucket in answer.data for result in bucket.results]


def test_answers_are_metered_and_the_unmodified_client_reads_the_usage(
    asked_api: Client, script: Script, api_engine: Engine, caller: Caller, until: Callable[..., Any]
) -> None:
    script[:] = [STARTED, Text(text="a"), ENDED]
    chat(asked_api)
    script[:] = [EXPERT, Text(text="a"), ENDED]
    chat(asked_api)
    asked_api.embeddings.create(model="tiny", input="x")
    until(lambda: total(api_engine, caller) == Tokens(3, 23, 8, 10))
    (whole,) = results(asked_api, bucket_width="1d")
    assert (whole.num_model_requests, whole.input_tokens, whole.output_tokens) == (3, 23, 10)
    assert (whole.input_cached_tokens, whole.model, whole.project_id) == (8, None, None)
    by_model = {found.model: found for found in results(asked_api, group_by=["model", "api_key_id", "project_id"])}
    assert {name: found.input_tokens for name, found in by_model.items()} == {"tiny": 13, "main.sums@v1": 10}
    assert by_model["tiny"].project_id == public_id("project", caller.project_id)
    assert by_model["tiny"].api_key_id.startswith("key-")
    (one,) = results(asked_api, models=["main.sums@v1"], project_ids=[by_model["tiny"].project_id])
    assert one.num_model_requests == 1
    stranger = public_id("API key", uuid.uuid4())
    assert results(asked_api, api_key_ids=[stranger]) == []


def test_an_answer_that_breaks_off_is_metered_as_far_as_it_came(
    asked_api: Client, script: Script, api_engine: Engine, caller: Caller, until: Callable[..., Any]
) -> None:
    script[:] = [STARTED, Text(text="a"), Text(text="bcd", count=3), BROKEN]
    refused(lambda: chat(asked_api))
    until(lambda: total(api_engine, caller) == Tokens(1, 10, 0, 4))


def test_an_orderly_end_of_the_api_loses_no_usage(
    app: FastAPI, api_engine: Engine, caller: Caller, settings: Settings
) -> None:
    from starlette.testclient import TestClient

    with TestClient(app):
        app.state.serving.meter.note(caller, "tiny", [], Tokens(1, 10, 0, 5))
    assert total(api_engine, caller) == Tokens(1, 10, 0, 5)


def test_usage_comes_in_pages_of_buckets(client: Client, api_engine: Engine, caller: Caller) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    with tenant_session(api_engine, caller.org_id) as session:
        hours = [start, start + timedelta(hours=23), start + timedelta(days=2)]
        token_usage.add(session, caller.org_id, {used_by(caller, hour): Tokens(1, 1, 0, 1) for hour in hours})
    told: list[int] = []
    page: Any = None
    asked = {"start_time": int(start.timestamp()), "end_time": int((start + timedelta(days=3)).timestamp())}
    while True:
        query = asked | {"limit": 2} | ({"page": page} if page else {})
        answer: Any = client.get("/organization/usage/completions", cast_to=object, options={"params": query})
        told += [sum(result["num_model_requests"] for result in bucket["results"]) for bucket in answer["data"]]
        page = answer["next_page"]
        assert answer["has_more"] == (page is not None)
        if page is None:
            break
    assert told == [2, 0, 1]


@pytest.mark.parametrize(
    "query", [{"page": "page_1"}, {"page": "x"}, {"bucket_width": "1m"}, {"group_by": "user_id"}, {"start_time": -1}]
)
def test_a_question_about_usage_that_cannot_be_answered_is_refused(client: Client, query: dict[str, Any]) -> None:
    asked = {"start_time": 1_700_000_000} | query
    error = refused(lambda: client.get("/organization/usage/completions", cast_to=object, options={"params": asked}))
    assert error.status_code == 400 and str(error.param).partition(".")[0] == next(iter(query))
