"""Schedules that fire when so many stored completions have come: a dataset is made of them, and trained on."""

import io
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused
from schedule_ticks import outcomes, trainings
from sqlalchemy import Engine, select
from storing import completion, turn_on

from zhub.completions import collecting
from zhub.completions.storing import store as store_completion
from zhub.database.sessions import system_session
from zhub.datasets import files
from zhub.datasets.validation import validate
from zhub.models import CompletionDataset, DatasetVersion
from zhub.recipes import MIN_PROMPTS
from zhub.schedules import completions
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
ON = {"cron": None, "on_new_data": True, "on_completions": 2}


@pytest.fixture
def come(system_engine: Engine, caller: Caller) -> Callable[..., list[str]]:
    """Let so many completions be stored; return their ids."""
    turn_on(system_engine, caller)

    def store(count: int = 1, owner: Caller = caller, **labels: str) -> list[str]:
        made = [completion(owner, **labels) for _ in range(count)]
        with system_session(system_engine) as session:
            for one in made:
                assert store_completion(session, one)
        return [f"chatcmpl-{one.completion_id.hex}" for one in made]

    return store


@pytest.fixture
def rate(ask: Ask) -> Ask:
    return lambda completion_id, score: ask("post", f"/chat/completions/{completion_id}/feedback", {"score": score})


def asked_for(engine: Engine) -> list[tuple[str, str]]:
    with system_session(engine) as session:
        made = session.scalars(select(CompletionDataset).order_by(CompletionDataset.id))
        return [(one.dataset, one.where) for one in made]


def test_so_many_completions_become_new_data_on_which_it_trains(
    ask: Ask, schedule: Ask, look: Ask, come: Ask, system_engine: Engine, store: DirectoryStore
) -> None:
    made = schedule(**ON | {"on_completions": MIN_PROMPTS}, completions_where="metadata.team:a")
    come(MIN_PROMPTS - 1, team="a")
    come(3, team="b")
    look()
    assert ask("get", f"/schedules/{made['id']}")["new_completions"] == MIN_PROMPTS - 1
    assert outcomes(system_engine) == [] and asked_for(system_engine) == []
    come(1, team="a")
    look()
    assert outcomes(system_engine) == ["collected"]
    assert asked_for(system_engine) == [("suite", "metadata.team:a")]
    assert ask("get", f"/schedules/{made['id']}")["new_completions"] == 0
    assert collecting.collect_next(system_engine, store, threading.Event())
    with system_session(system_engine) as session:
        newest = session.scalars(select(DatasetVersion).order_by(DatasetVersion.version.desc())).first()
        assert newest is not None and newest.version == 2
    content = b"".join(store.open(newest.key))
    report = files.validation_report(validate(io.BytesIO(content)))
    with system_session(system_engine) as session:
        files.write_validation(session, newest.id, report)
    look()
    assert outcomes(system_engine) == ["collected", "fired"]
    assert [job.dataset_version_id for job in trainings(system_engine)] == [newest.id]
    assert content.count(b"\n") == MIN_PROMPTS


def test_ratings_count_when_they_come_and_each_completion_once_a_look(
    schedule: Ask, look: Ask, come: Ask, rate: Ask, system_engine: Engine
) -> None:
    first, second, third = come(3)
    schedule(**ON, completions_where="rating:up")
    for score in (1, 0.5, 1):
        rate(first, score)
    rate(second, -1)
    look()
    assert outcomes(system_engine) == []
    rate(third, 1)
    look()
    assert outcomes(system_engine) == ["collected"]


def test_what_was_there_before_it_was_made_changed_or_resumed_does_not_count(
    ask: Ask, schedule: Ask, look: Ask, come: Ask, system_engine: Engine
) -> None:
    come(5)
    made = schedule(**ON)
    look()
    come()
    ask("post", f"/schedules/{made['id']}/pause")
    come(5)
    look()
    ask("post", f"/schedules/{made['id']}/resume")
    come()
    look()
    path = f"/schedules/{made['id']}"
    ask("patch", path, {"overlap": "allow"})
    assert ask("get", path)["new_completions"] == 1
    ask("patch", path, {"completions_where": "model:tiny"})
    assert ask("get", path)["new_completions"] == 0 and outcomes(system_engine) == []
    come(2)
    look()
    assert outcomes(system_engine) == ["collected"]


def test_of_many_completions_each_look_counts_some(
    ask: Ask, schedule: Ask, look: Ask, come: Ask, system_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "MAX_COUNTED", 2)
    made = schedule(**ON | {"on_completions": 6})
    come(5)
    assert look() == 3
    assert ask("get", f"/schedules/{made['id']}")["new_completions"] == 5
    come()
    look()
    assert outcomes(system_engine) == ["collected"] and look() == 0


def test_completions_of_others_do_not_count(
    schedule: Ask, look: Ask, come: Ask, make_caller: Callable[..., Caller], system_engine: Engine
) -> None:
    schedule(**ON)
    for names in (("globex", "main"), ("acme", "other")):
        owner = make_caller(*names)
        turn_on(system_engine, owner)
        come(3, owner)
    assert look() == 0 and outcomes(system_engine) == []


def test_a_query_that_cannot_be_read_any_more_pauses_it_and_says_why(
    ask: Ask, schedule: Ask, look: Ask, come: Ask, publish_version: Ask
) -> None:
    publish_version("winter")
    made = schedule(**ON, completions_where="expert:main.winter")
    ask("delete", "/experts/main.winter")
    come()
    look()
    told = ask("get", f"/schedules/{made['id']}")
    assert told["status"] == "paused" and "main.winter" in told["paused_because"]
    assert look() == 0


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"on_new_data": False, "cron": "0 3 * * 1"}, "on_new_data", "set 'on_new_data' to true"),
        ({"completions_where": "ratng:up"}, "completions_where", "Did you mean 'rating'"),
        ({"on_completions": None, "completions_where": "rating:up"}, "on_completions", "at how many"),
        ({"on_completions": 0}, "on_completions", "greater than"),
    ],
)
def test_a_trigger_that_cannot_fire_is_refused_by_name(
    schedule: Ask, options: dict[str, Any], param: str, message: str
) -> None:
    error = refused(lambda: schedule(**ON | options))
    assert isinstance(error, openai.BadRequestError)
    assert error.param == param and message in error.message
