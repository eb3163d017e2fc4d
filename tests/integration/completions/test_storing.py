"""``store: true``: only where the project allows it, whole, redacted, and whoever still listens to the answer."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused
from fault_proxy import FaultProxy
from scripted_serving import BROKEN, WAITING, Listener
from sqlalchemy import Engine, select
from storing import ENDED, Storing, completion, started, turn_on

from zhub.cli.database_operations import set_quota
from zhub.completions import listing
from zhub.completions.storing import store
from zhub.database.sessions import system_session, tenant_session
from zhub.embedded.postgres import Urls
from zhub.generation import ChosenToken, Ended, Line, Text, ToolCall
from zhub.models import CompletionSettings, ExpertVersion, StoredCompletion
from zhub.tenancy.keys import Caller
from zhub.tenancy.quotas import stored_bytes
from zhub_api import keeping
from zhub_api.keeping import CompletionKeeper

Client = openai.OpenAI
Ask = Callable[..., Any]
Script = list[Line | str]
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def rows(engine: Engine) -> list[StoredCompletion]:
    with system_session(engine) as session:
        return list(session.scalars(select(StoredCompletion).order_by(StoredCompletion.id)))


# Whether


def test_a_project_that_has_not_opted_in_refuses_to_store_and_says_who_may_turn_it_on(
    client: Client, make_base_model: Ask, system_engine: Engine, script: Script
) -> None:
    make_base_model()
    script += [started(), Text(text="2"), ENDED]
    messages: Any = [{"role": "user", "content": "1 + 1 ="}]
    error = refused(lambda: client.chat.completions.create(model="tiny", messages=messages, store=True))
    assert (error.status_code, error.code, error.param) == (400, "storing_disabled", "store")
    assert "'project:write'" in error.message and "POST /v1/stored_completions/settings" in error.message
    for options in ({}, {"store": False}, {"metadata": {"team": "a"}}):
        client.chat.completions.create(model="tiny", messages=messages, **options)
    assert rows(system_engine) == []


def test_what_is_not_asked_to_be_stored_is_not_stored(storing: Storing, system_engine: Engine) -> None:
    first = storing.stored()
    storing.ask(store=False)
    second = storing.stored()
    assert [f"chatcmpl-{row.id.hex}" for row in rows(system_engine)] == [first, second]


def test_a_project_that_turns_it_off_again_keeps_what_it_has_and_stores_no_more(
    storing: Storing, change_settings: Ask, client: Client
) -> None:
    stored = storing.stored()
    change_settings(enabled=False)
    assert refused(storing.ask).code == "storing_disabled"
    assert [entry.id for entry in client.chat.completions.list()] == [stored]


def test_text_completions_are_never_stored(client: Client, storing: Storing) -> None:
    error = refused(lambda: client.completions.create(model="tiny", prompt="1 +", extra_body={"store": True}))
    assert (error.status_code, error.param) == (400, "store")


# What


@pytest.mark.parametrize("stream", [False, True])
def test_request_and_answer_are_read_again_as_they_were(
    storing: Storing, client: Client, script: Script, stream: bool
) -> None:
    script[:] = [started(), Text(text="2"), Text(index=1, text="t"), ENDED, Text(index=1, text="wo"), _ended(1)]
    options = {"n": 2, "temperature": 0.5, "seed": 7, "metadata": {"team": "a"}, "user": "u", "stream": stream}
    answer = storing.ask([{"type": "text", "text": "1 +"}, {"type": "text", "text": " 1 ="}], **options)
    answer_id = [chunk.id for chunk in answer][0] if stream else answer.id
    stored = client.chat.completions.retrieve(storing.wait(answer_id))
    choices = [(choice.index, choice.message.content, choice.finish_reason) for choice in stored.choices]
    assert choices == [(0, "2", "stop"), (1, "two", "length")]
    assert stored.usage is not None and stored.usage.completion_tokens == 5
    assert (stored.model, stored.object) == ("tiny", "chat.completion")
    told = stored.to_dict()
    assert (told["temperature"], told["seed"], told["metadata"]) == (0.5, 7, {"team": "a"})
    if not stream:
        assert stored.created == answer.created and stored.choices == answer.choices


def test_who_asked_and_the_log_probabilities_are_not_kept(
    storing: Storing, client: Client, script: Script, system_engine: Engine
) -> None:
    token = ChosenToken(token=b"2", logprob=-0.5)
    script[:] = [started(), Text(text="2", tokens=[token]), ENDED]
    answer = storing.ask(user="somebody", logprobs=True)
    assert answer.choices[0].logprobs is not None
    storing.wait(answer.id)
    (row,) = rows(system_engine)
    assert "user" not in row.request and row.answer["choices"][0]["logprobs"] is None


def test_calls_of_tools_are_kept_with_the_tools(storing: Storing, client: Client, script: Script) -> None:
    script[:] = [started(), ToolCall(name="add", arguments='{"a": 1}'), ENDED]
    stored = client.chat.completions.retrieve(storing.wait(storing.ask(tools=TOOLS).id))
    (call,) = stored.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 1}')  # type: ignore[union-attr]
    assert stored.choices[0].finish_reason == "tool_calls"
    told: Any = stored.to_dict()
    assert told["tools"][0]["function"]["name"] == "add"


def test_a_completion_knows_the_version_that_answered_alone(
    storing: Storing, publish_version: Callable[..., str], script: Script, system_engine: Engine
) -> None:
    names = [publish_version("summer"), publish_version("winter")]
    with system_session(system_engine) as session:
        versions = list(session.scalars(select(ExpertVersion).order_by(ExpertVersion.id)))
    experts = [(name, version.digest) for name, version in zip(names, versions, strict=True)]
    script[:] = [started(experts[0]), Text(text="2"), ENDED]
    storing.wait(storing.ask(model=names[0]).id)
    script[:] = [started(*experts), Text(text="2"), ENDED]
    storing.wait(storing.ask(extra_body={"experts": [{"model": name} for name in names]}).id)
    alone, mixed = rows(system_engine)
    assert (alone.version_id, mixed.version_id) == (versions[0].id, None)
    assert [expert["name"] for expert in mixed.answer["experts"]] == names


@pytest.mark.parametrize("redact", [["email"], []])
def test_texts_are_redacted_before_they_are_stored(
    storing: Storing, change_settings: Ask, system_engine: Engine, redact: list[str]
) -> None:
    change_settings(redact=redact)
    labels = {"from": "ann@example.com"}
    storing.stored("Write to ann@example.com!", "I wrote to ann@example.com.", metadata=labels)
    (row,) = rows(system_engine)
    texts = (row.request["messages"][0]["content"], row.answer["choices"][0]["message"]["content"], row.labels["from"])
    who = "[EMAIL]" if redact else "ann@example.com"
    assert texts == (f"Write to {who}!", f"I wrote to {who}.", who)


def test_a_character_that_no_row_holds_is_replaced(storing: Storing, client: Client) -> None:
    stored = storing.stored("a\0b", "c\0d")
    assert client.chat.completions.messages.list(stored).data[0].content == "a\ufffdb"
    assert client.chat.completions.retrieve(stored).choices[0].message.content == "c\ufffdd"


# How much


def test_a_request_that_is_too_large_to_be_stored_is_refused_before_it_is_answered(storing: Storing) -> None:
    error = refused(lambda: storing.ask("a" * (1 << 20)))
    assert (error.status_code, error.param) == (400, "store") and "1,048,576" in error.message


def test_stored_bytes_count_for_the_organisation_until_they_are_removed(
    storing: Storing, client: Client, caller: Caller, api_engine: Engine, system_engine: Engine, database: Urls
) -> None:
    stored = storing.stored()
    (row,) = rows(system_engine)
    with tenant_session(api_engine, caller.org_id) as session:
        assert stored_bytes(session, caller.org_id) == row.size_bytes > 0
    set_quota(database.system, "acme", max_bytes=row.size_bytes)
    error = refused(storing.ask)
    assert (error.status_code, error.code) == (429, "quota_exceeded")
    client.chat.completions.delete(stored)
    with system_session(system_engine) as session:
        assert listing.sweep(session) == 1
    storing.stored()


# When


def test_an_answer_whose_client_leaves_in_its_middle_is_no_completion(
    storing: Storing, client: Client, script: Script, listener: Listener, system_engine: Engine
) -> None:
    script[:] = [started(), Text(text="2"), WAITING]
    stream = storing.ask(stream=True)
    next(iter(stream))
    assert listener.waits.wait(20)
    stream.close()
    assert listener.left.wait(20)
    script[:] = [started(), Text(text="3"), ENDED]
    stored = storing.stored()  # whatever came before is stored before it
    assert [f"chatcmpl-{row.id.hex}" for row in rows(system_engine)] == [stored]


def test_an_answer_that_breaks_off_is_no_completion(storing: Storing, script: Script, system_engine: Engine) -> None:
    script[:] = [started(), Text(text="2"), BROKEN]
    assert refused(storing.ask).status_code == 503
    stored = storing.stored()
    assert [f"chatcmpl-{row.id.hex}" for row in rows(system_engine)] == [stored]


def test_what_is_answered_while_the_database_is_away_is_stored_when_it_is_back(
    database: Urls, caller: Caller, proxy: FaultProxy, open_engine: Ask, system_engine: Engine, until: Ask
) -> None:
    turn_on(system_engine, caller)
    keeper, stopping = CompletionKeeper(open_engine(proxy.url(database.api))), threading.Event()
    proxy.cut()
    thread = threading.Thread(target=keeper.run, args=(stopping,))
    thread.start()
    try:
        keeper.keep(completion(caller), 10)
        assert rows(system_engine) == []
        proxy.mend()
        until(lambda: rows(system_engine))
    finally:
        stopping.set()
        thread.join(timeout=15)


def test_what_has_come_is_stored_before_the_process_ends(
    api_engine: Engine, caller: Caller, system_engine: Engine
) -> None:
    turn_on(system_engine, caller)
    keeper, stopping = CompletionKeeper(api_engine), threading.Event()
    for _ in range(20):
        keeper.keep(completion(caller), 10)
    stopping.set()
    keeper.run(stopping)
    keeper.wait_drained()
    assert len(rows(system_engine)) == 20


def test_what_no_memory_is_left_for_is_lost_and_said_so(
    api_engine: Engine, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = CompletionKeeper(api_engine)
    keeper.keep(completion(caller), keeping.MAX_WAITING_BYTES)
    with caplog.at_level(logging.ERROR):
        keeper.keep(completion(caller), 1)
    assert [record.action for record in caplog.records] == ["completion_lost"]  # type: ignore[attr-defined]


def test_a_completion_is_stored_once_however_often_it_is_sent(
    api_engine: Engine, caller: Caller, system_engine: Engine
) -> None:
    turn_on(system_engine, caller)
    one = completion(caller)
    for first in (True, False):
        with tenant_session(api_engine, caller.org_id) as session:
            assert store(session, one) is first
    with system_session(system_engine) as session:
        said = session.scalars(select(CompletionSettings)).one()
        (row,) = session.scalars(select(StoredCompletion)).all()
    assert (said.changes, said.stored_bytes) == (1, row.size_bytes)


def _ended(index: int) -> Ended:
    return Ended(index=index, finish_reason="length", completion_tokens=3)
