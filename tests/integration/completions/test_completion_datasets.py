"""Datasets made of stored completions: by a query, in the form of rows, with their provenance."""

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import openai
import pytest
from api_requests import refused
from sqlalchemy import Engine, select, text, update
from storing import ENDED, Storing, completion, started, turn_on

from zhub.cli.database_operations import set_quota
from zhub.completions import collecting
from zhub.completions.storing import store as store_completion
from zhub.database.sessions import system_session
from zhub.embedded.postgres import Urls
from zhub.errors import StoreError
from zhub.generation import Line, Text, ToolCall
from zhub.models import CompletionDataset, DatasetVersion, ExpertVersion
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
Ask = Callable[..., Any]
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture
def collect(system_engine: Engine, store: DirectoryStore) -> Callable[[], bool]:
    """Do what a scheduler's thread does."""
    return lambda: collecting.collect_next(system_engine, store, threading.Event())


@pytest.fixture
def make(ask: Ask, collect: Callable[[], bool]) -> Ask:
    """Make a dataset of completions; return what became of it."""

    def post(where: str = "", **options: Any) -> Any:
        made = ask("post", "/stored_completions/datasets", {"dataset": "liked", "where": where} | options)
        assert made["status"] == "queued" and collect() and not collect()
        return ask("get", f"/stored_completions/datasets/{made['id']}")

    return post


@pytest.fixture
def rate(ask: Ask) -> Ask:
    def post(completion_id: str, score: float, **options: Any) -> None:
        ask("post", f"/chat/completions/{completion_id}/feedback", {"score": score} | options)

    return post


def rows_of(client: Client, made: Any) -> list[Any]:
    assert made["status"] == "succeeded", made["error"]
    return [json.loads(line) for line in client.files.content(made["file"]).text.splitlines()]


def ids_of(client: Client, made: Any) -> list[str]:
    return [row["completion_id"] for row in rows_of(client, made)]


# The rows


def test_a_row_has_the_prompt_the_answer_and_its_rating(storing: Storing, client: Client, make: Ask, rate: Ask) -> None:
    parts: Any = [{"type": "text", "text": "1 + 1"}, {"type": "text", "text": " ="}]
    messages: Any = [{"role": "system", "content": "Add."}, {"role": "user", "content": parts}]
    plain, rated = storing.stored("2 + 2 =", "4", metadata={"team": "a"}), storing.stored(messages=messages)
    rate(rated, 0.5)
    assert rows_of(client, make()) == [
        {
            "messages": [messages[0], {"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}],
            "completion_id": rated, "experts": [], "rating": 0.5,
        },
        {
            "messages": [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}],
            "completion_id": plain, "experts": [], "metadata": {"team": "a"},
        },
    ]  # fmt: skip


def test_the_answer_that_would_have_been_right_is_the_target(
    storing: Storing, client: Client, make: Ask, rate: Ask
) -> None:
    stored = storing.stored(answer="3")
    rate(stored, -1, reference="1")
    rate(stored, -1, reference="2")
    (row,) = rows_of(client, make())
    assert (row["messages"][-1]["content"], row["given"], row["rating"]) == ("2", "3", -1)


def test_rows_have_the_form_of_what_trains_on_them(storing: Storing, client: Client, make: Ask, rate: Ask) -> None:
    wrong, right = storing.stored(answer="3"), storing.stored()
    rate(wrong, -1, reference="2")
    prompt = [{"role": "user", "content": "1 + 1 ="}]
    first, second = rows_of(client, make(method="reinforcement"))
    assert (first["messages"], first["answer"], first["completion_id"]) == (prompt, "2", right)
    assert (second["messages"], second["answer"], second["given"], second["rating"]) == (prompt, "2", "3", -1)
    made = make(method="dpo")
    assert rows_of(client, made) == [
        {
            "input": {"messages": prompt}, "preferred_output": [{"role": "assistant", "content": "2"}],
            "non_preferred_output": [{"role": "assistant", "content": "3"}],
            "completion_id": wrong, "experts": [], "rating": -1,
        }
    ]  # fmt: skip
    assert made["provenance"]["left_out"] == 1
    assert "None of the 1 stored completions described by 'rating:none'" in make("rating:none", method="dpo")["error"]


def test_of_several_answers_the_best_rated_one_is_the_target(
    storing: Storing, client: Client, make: Ask, rate: Ask, script: list[Line | str]
) -> None:
    script[:] = [started(), Text(text="3"), Text(index=1, text="2"), ENDED, ENDED.model_copy(update={"index": 1})]
    stored = storing.wait(storing.ask(n=2).id)
    rate(stored, -1)
    rate(stored, 1, choice=1)
    (row,) = rows_of(client, make("rating:up"))
    assert (row["messages"][-1]["content"], row["rating"]) == ("2", 1)


def test_what_no_row_can_tell_of_is_left_out_and_counted(
    storing: Storing, client: Client, make: Ask, script: list[Line | str]
) -> None:
    stored = storing.stored()
    storing.stored(tools=TOOLS)
    script[:] = [started(), ToolCall(name="add", arguments="{}"), ENDED]
    storing.wait(storing.ask(tools=TOOLS).id)
    storing.stored(answer="")
    made = make()
    assert ids_of(client, made) == [stored]
    assert (made["provenance"]["rows"], made["provenance"]["left_out"]) == (1, 3)


# The query


def test_each_condition_chooses_what_it_says(
    storing: Storing, client: Client, make: Ask, rate: Ask, make_base_model: Ask, system_engine: Engine
) -> None:
    make_base_model("small")
    up, down, small, old = storing.stored(), storing.stored(), storing.stored(model="small"), storing.stored()
    rate(up, 0.4)
    rate(down, -1, reference="2")
    client.chat.completions.update(up, metadata={"team": "a b"})
    client.chat.completions.update(small, metadata={"team": "b"})
    with system_session(system_engine) as session:
        statement = "UPDATE stored_completions SET created_at = now() - interval '2 days' WHERE id = :id"
        session.execute(text(statement), {"id": old.removeprefix("chatcmpl-")})
    for where, chosen in {
        "": [old, small, down, up],
        "rating:up": [up],
        "rating:down": [down],
        "rating:any": [down, up],
        "rating:none": [old, small],
        "-rating:up": [old, small, down],
        "rating>=0.4": [up],
        "rating<0.4": [down],
        "reference:yes": [down],
        "reference:no rating:any": [up],
        "model:small": [small],
        "-model:small since:1d": [down, up],
        "until:1d": [old],
        "since:2020-01-31 until:2020-02-01": [],
        'metadata.team:"a b"': [up],
        "-metadata.team:b": [old, down, up],
        "finish:stop -rating:none": [down, up],
        "finish:length": [],
    }.items():
        made = make(where)
        if chosen:
            assert ids_of(client, made) == chosen, where
        else:
            assert made["error"] == f"No stored completion is described by '{where}'."


def test_completions_of_an_expert_are_those_that_it_answered_alone(
    storing: Storing, client: Client, make: Ask, publish_version: Ask, script: list[Line | str], system_engine: Engine
) -> None:
    names = [publish_version(), publish_version()]
    with system_session(system_engine) as session:
        digests = list(session.scalars(select(ExpertVersion.digest).order_by(ExpertVersion.id)))
    answered = []
    for name, digest in zip(names, digests, strict=True):
        script[:] = [started((name, digest)), Text(text="2"), ENDED]
        answered.append(storing.wait(storing.ask(model=name).id))
    storing.stored()
    assert ids_of(client, make("expert:main.summer")) == answered[::-1]
    assert ids_of(client, make(f"expert:{names[0]}")) == answered[:1]
    assert rows_of(client, make(f"expert:{names[1]}"))[0]["experts"] == [names[1]]


@pytest.mark.parametrize(
    ("options", "status", "param"),
    [
        ({"where": "ratng:up"}, 400, "where"),
        ({"where": "rating:good"}, 400, "where"),
        ({"where": "rating>much"}, 400, "where"),
        ({"where": "since:yesterday"}, 400, "where"),
        ({"where": "finish:late"}, 400, "where"),
        ({"where": "expert:main.nobody"}, 404, None),
        ({"where": "expert:globex.summer"}, 404, None),
        ({"dataset": "My Data"}, 400, "dataset"),
        ({"method": "prayer"}, 400, "method"),
        ({"max_rows": 0}, 400, "max_rows"),
        ({"max_rows": 1_000_001}, 400, "max_rows"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    ask: Ask, options: dict[str, Any], status: int, param: str | None
) -> None:
    error = refused(lambda: ask("post", "/stored_completions/datasets", {"dataset": "liked"} | options))
    assert (error.status_code, error.param) == (status, param)


# The version


def test_a_dataset_says_what_it_was_made_of_and_is_a_version_as_any_other(
    storing: Storing, client: Client, ask: Ask, make: Ask, rate: Ask
) -> None:
    for _ in range(2):
        rate(storing.stored(), 1)
    made = make("rating:up since:7d")
    provenance = made["provenance"]
    assert (provenance["where"], provenance["rows"], provenance["cut"]) == ("rating:up since:7d", 2, False)
    assert provenance["oldest_at"] < provenance["newest_at"]
    file = ask("get", f"/files/{made['file']}")
    assert (file["dataset"], file["version"], file["purpose"], file["status"]) == ("liked", 1, "fine-tune", "uploaded")
    assert file["completions"] == provenance
    assert ask("get", "/files")["data"] == [file]
    rate(storing.stored(), 1)
    assert ask("get", f"/files/{make('rating:up')['file']}")["version"] == 2


def test_the_newest_rows_are_taken_where_there_are_too_many(storing: Storing, client: Client, make: Ask) -> None:
    stored = [storing.stored() for _ in range(3)]
    made = make(max_rows=2)
    assert ids_of(client, made) == stored[:0:-1] and made["provenance"]["cut"] is True
    assert make(max_rows=3)["provenance"]["cut"] is False


def test_windows_of_completions_join_without_a_gap(
    caller: Caller, client: Client, make: Ask, system_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "WINDOW", 3)
    turn_on(system_engine, caller)
    made = [completion(caller, number=str(number)) for number in range(10)]
    with system_session(system_engine) as session:
        for one in made:
            store_completion(session, one)
    expected = [f"chatcmpl-{one.completion_id.hex}" for one in sorted(made, key=lambda one: one.completion_id)][::-1]
    assert ids_of(client, make()) == expected
    assert ids_of(client, make("metadata.number:0")) == [f"chatcmpl-{made[0].completion_id.hex}"]


def test_deleted_completions_are_in_no_new_dataset_and_stay_in_an_old_one(
    storing: Storing, client: Client, make: Ask
) -> None:
    gone, stays = storing.stored(), storing.stored()
    before = make()
    client.chat.completions.delete(gone)
    assert ids_of(client, make()) == [stays]
    assert ids_of(client, before) == [stays, gone]


def test_a_dataset_that_does_not_fit_is_failed_with_the_reason(storing: Storing, make: Ask, database: Urls) -> None:
    storing.stored()
    set_quota(database.system, "acme", max_bytes=1)
    made = make()
    assert made["status"] == "failed" and "may store" in made["error"] and made["file"] is None


# Who writes it


def test_two_schedulers_write_one_dataset_once(
    storing: Storing, ask: Ask, collect: Callable[[], bool], system_engine: Engine
) -> None:
    storing.stored()
    ask("post", "/stored_completions/datasets", {"dataset": "liked"})
    threads = [threading.Thread(target=collect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    with system_session(system_engine) as session:
        assert len(session.scalars(select(DatasetVersion)).all()) == 1


def test_a_scheduler_that_stops_in_the_middle_is_followed_by_another(
    storing: Storing, ask: Ask, collect: Callable[[], bool], system_engine: Engine, store: DirectoryStore
) -> None:
    storing.stored()
    made = ask("post", "/stored_completions/datasets", {"dataset": "liked"})

    class Away:
        def put_absent(self, *_: object) -> None:
            raise StoreError("the disk is gone", key="k")

    with pytest.raises(StoreError):
        collecting.collect_next(system_engine, Away(), threading.Event())  # type: ignore[arg-type]
    assert not collect()  # it is still claimed
    with system_session(system_engine) as session:
        ago = CompletionDataset.claimed_until - timedelta(minutes=3)
        session.execute(update(CompletionDataset).values(claimed_until=ago))
    assert collect()
    assert ask("get", f"/stored_completions/datasets/{made['id']}")["status"] == "succeeded"


def test_what_fails_by_a_bug_is_failed_and_does_not_stop_the_next(
    storing: Storing, ask: Ask, collect: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    storing.stored()
    made = ask("post", "/stored_completions/datasets", {"dataset": "liked"})
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "row_of", lambda *_: 1 // 0)
        assert collect()
    told = ask("get", f"/stored_completions/datasets/{made['id']}")
    assert told["status"] == "failed" and "ZeroDivisionError" in told["error"]


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_nobody_else_sees_a_dataset_or_makes_one_of_these_completions(
    storing: Storing, make: Ask, open_client: Ask, make_key: Ask, other: tuple[str, str], collect: Ask
) -> None:
    storing.stored()
    made = make()
    theirs = open_client(make_key(*other))
    path = "/stored_completions/datasets"
    assert refused(lambda: theirs.get(f"{path}/{made['id']}", cast_to=object)).status_code == 404
    assert theirs.get(path, cast_to=object)["data"] == []
    own = theirs.post(path, body={"dataset": "stolen"}, cast_to=object)
    assert collect()
    assert theirs.get(f"{path}/{own['id']}", cast_to=object)["status"] == "failed"
