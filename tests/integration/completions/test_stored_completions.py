"""Stored completions through the unmodified client: listed, read, labelled, deleted, gone when their time is over."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import ProgrammingError
from storing import Storing

from zhub.completions import listing
from zhub.database.sessions import system_session, tenant_session
from zhub.models import CompletionSettings, Feedback, StoredCompletion
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES

Client = openai.OpenAI
Ask = Callable[..., Any]


def ids(listed: Any) -> list[str]:
    return [entry.id for entry in listed]


def sweep(engine: Engine) -> int:
    with system_session(engine) as session:
        return listing.sweep(session)


def count(engine: Engine, table: Any) -> int:
    with system_session(engine) as session:
        return session.scalars(select(func.count()).select_from(table)).one()


# Found and read


def test_completions_are_listed_by_model_and_metadata_page_by_page_in_both_orders(
    storing: Storing, client: Client, make_base_model: Ask
) -> None:
    make_base_model("small")
    first = storing.stored(metadata={"team": "a", "kind": "sum"})
    second = storing.stored(model="small", metadata={"team": "a"})
    third = storing.stored()
    listed = client.chat.completions.list
    assert ids(listed()) == [first, second, third]
    assert ids(listed(order="desc")) == [third, second, first]
    assert ids(listed(model="small")) == [second]
    assert ids(listed(metadata={"team": "a"})) == [first, second]
    assert ids(listed(metadata={"team": "a", "kind": "sum"})) == [first]
    assert ids(listed(metadata={"team": "b"})) == []
    page = listed(limit=2)
    assert (ids(page.data), page.has_more) == ([first, second], True)
    assert (ids(page.get_next_page().data), page.get_next_page().has_more) == ([third], False)


def test_the_messages_of_a_request_are_read_page_by_page(storing: Storing, client: Client) -> None:
    parts: Any = [{"type": "text", "text": "1 + 1 ="}]
    messages = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "+ 1 ="},
    ]
    stored = storing.stored(messages=messages)
    read = client.chat.completions.messages.list
    told = [(message.role, message.content, message.content_parts) for message in read(stored)]
    expected = [("system", "Add.", None), ("user", None), ("assistant", "2", None), ("user", "+ 1 =", None)]
    assert [entry[:2] for entry in told] == [entry[:2] for entry in expected]
    assert [part.to_dict() for part in told[1][2] or []] == parts
    assert ids(read(stored, limit=1)) == ids(read(stored)) == [f"{stored}-{index}" for index in range(4)]
    assert ids(read(stored, order="desc")) == ids(read(stored))[::-1]
    assert refused(lambda: read(stored, after="nothing")).status_code == 404


def test_the_metadata_of_a_completion_is_replaced(storing: Storing, client: Client) -> None:
    stored = storing.stored(metadata={"team": "a"})
    changed = client.chat.completions.update(stored, metadata={"quality": "good"})
    assert changed.metadata == {"quality": "good"} == client.chat.completions.retrieve(stored).metadata
    assert client.chat.completions.update(stored, metadata=None).metadata == {}
    for metadata in ({"k" * 65: "v"}, {"k": "v" * 513}, {str(number): "" for number in range(17)}):
        error = refused(partial(client.chat.completions.update, stored, metadata=metadata))
        assert error.status_code == 400 and str(error.param).startswith("metadata")


# Whose


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_what_a_project_stores_is_not_there_for_anybody_else(
    storing: Storing, client: Client, open_client: Ask, make_key: Ask, other: tuple[str, str], ask: Ask
) -> None:
    stored = storing.stored()
    theirs: Client = open_client(make_key(*other))
    completions = theirs.chat.completions
    for call in (
        lambda: completions.retrieve(stored),
        lambda: completions.messages.list(stored),
        lambda: completions.update(stored, metadata={"a": "b"}),
        lambda: completions.delete(stored),
        lambda: theirs.post(f"/chat/completions/{stored}/feedback", body={"score": 1}, cast_to=object),
    ):
        assert refused(call).status_code == 404
    assert ids(completions.list()) == []
    said: Any = theirs.get("/stored_completions/settings", cast_to=object)
    assert said["enabled"] is False and said["stored_bytes"] == 0
    theirs.delete("/stored_completions", cast_to=object)
    assert ids(client.chat.completions.list()) == [stored]
    assert ask("get", "/stored_completions/settings")["stored_bytes"] > 0


@pytest.mark.parametrize(
    ("scope", "request_"),
    [
        ("project:write", ("post", "/stored_completions/settings", {"enabled": True})),
        ("project:write", ("delete", "/stored_completions")),
        ("files:read", ("get", "/stored_completions/settings")),
        ("files:read", ("get", "/chat/completions")),
        ("files:write", ("delete", f"/chat/completions/chatcmpl-{'0' * 32}")),
        ("chat", ("post", f"/chat/completions/chatcmpl-{'0' * 32}/feedback", {"score": 1})),
    ],
)
def test_each_call_needs_its_scope_and_no_other(
    open_client: Ask, make_key: Ask, scope: str, request_: tuple[Any, ...]
) -> None:
    method, path, *body = request_

    def send(*scopes: str) -> Any:
        client = open_client(make_key(scopes=scopes))
        return getattr(client, method)(path, cast_to=object, **({"body": body[0]} if body else {}))

    error = refused(lambda: send(*(other for other in SCOPES if other != scope)))
    assert (error.status_code, error.code) == (403, "missing_scope") and scope in error.message
    with contextlib.suppress(openai.NotFoundError):  # there is no such completion
        send(scope)


@pytest.mark.parametrize("column", ["request", "answer", "created_at", "project_id", "size_bytes"])
def test_the_api_changes_nothing_of_what_was_said(api_engine: Engine, caller: Caller, column: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        tenant_session(api_engine, caller.org_id) as session,
    ):
        session.execute(text(f"UPDATE stored_completions SET {column} = {column}"))


# How long


def test_a_deleted_completion_is_gone_at_once_with_its_feedback_and_then_removed(
    storing: Storing, client: Client, ask: Ask, system_engine: Engine
) -> None:
    gone, stays = storing.stored(), storing.stored()
    for stored in (gone, stays):
        ask("post", f"/chat/completions/{stored}/feedback", {"score": 1})
    assert client.chat.completions.delete(gone).deleted is True
    for call in (client.chat.completions.retrieve, client.chat.completions.delete):
        assert refused(partial(call, gone)).status_code == 404
    assert ids(client.chat.completions.list()) == [stays]
    assert [piece["completion_id"] for piece in ask("get", "/feedback")["data"]] == [stays]
    assert (sweep(system_engine), sweep(system_engine)) == (1, 0)
    assert (count(system_engine, StoredCompletion), count(system_engine, Feedback)) == (1, 1)


def test_all_are_deleted_at_once_and_what_comes_later_stays(
    storing: Storing, client: Client, ask: Ask, system_engine: Engine
) -> None:
    for _ in range(3):
        storing.stored()
    assert ask("delete", "/stored_completions")["deleted"] is True
    assert ids(client.chat.completions.list()) == []
    later = storing.stored()
    assert (sweep(system_engine), sweep(system_engine)) == (3, 0)
    assert ids(client.chat.completions.list()) == [later]
    with system_session(system_engine) as session:
        said = session.scalars(select(CompletionSettings)).one()
        assert said.stored_bytes == session.scalars(select(StoredCompletion.size_bytes)).one()


def test_a_completion_goes_when_its_days_are_over(
    storing: Storing, client: Client, change_settings: Ask, system_engine: Engine
) -> None:
    old, new = storing.stored(), storing.stored()
    statement = "UPDATE stored_completions SET created_at = now() - interval '7 days 1 minute' WHERE id = :id"
    with system_session(system_engine) as session:
        session.execute(text(statement), {"id": old.removeprefix("chatcmpl-")})
    assert ids(client.chat.completions.list()) == [old, new] and sweep(system_engine) == 0
    change_settings(kept_days=7)
    assert ids(client.chat.completions.list()) == [new]
    assert (sweep(system_engine), sweep(system_engine)) == (1, 0)


# What a project says


def test_settings_change_one_by_one(ask: Ask, change_settings: Ask) -> None:
    told = ask("get", "/stored_completions/settings")
    assert (told["enabled"], told["kept_days"], told["stored_bytes"]) == (False, 30, 0)
    assert {"secret", "email", "card"} <= set(told["redact"])
    assert change_settings(kept_days=7) == told | {"kept_days": 7}
    assert change_settings(redact=["email"], enabled=True) == told | {
        "kept_days": 7, "redact": ["email"], "enabled": True,
    }  # fmt: skip
    assert ask("get", "/stored_completions/settings")["redact"] == ["email"]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"kept_days": 0}, "kept_days", "greater than"),
        ({"kept_days": 3651}, "kept_days", "less than"),
        ({"redact": ["emial"]}, "redact", "Did you mean 'email'"),
        ({"on": True}, "on", "not permitted"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    change_settings: Ask, changes: dict[str, Any], param: str, message: str
) -> None:
    error = refused(lambda: change_settings(**changes))
    assert (error.status_code, error.param) == (400, param) and message in error.message
