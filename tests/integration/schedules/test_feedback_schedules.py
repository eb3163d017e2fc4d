"""Schedules that fire when so much feedback has come."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from schedule_ticks import TRAINING, outcomes, trainings
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.schedules.firing import process_next_due
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
Ask = Callable[..., Any]


def test_a_schedule_fires_when_so_much_feedback_has_come_and_again_when_so_much_more_has(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    first, second = publish_version(), publish_version()
    made = schedule(cron=None, on_feedback=3, overlap="allow")
    give(first, 2)
    assert look() == 0
    assert ask("get", f"/schedules/{made['id']}")["new_feedback"] == 2
    give(second)
    assert look() == 1 and look() == 0
    assert ask("get", f"/schedules/{made['id']}")["new_feedback"] == 0
    give(second, 4)
    assert look() == 1 and look() == 0
    give(second, 2)
    assert look() == 0
    rows = ask("get", f"/schedules/{made['id']}/ticks")["data"]
    assert [(row["outcome"], row["tick"]) for row in rows] == [
        ("fired", "feedback:summer:7"),
        ("fired", "feedback:summer:3"),
    ]


def test_schedulers_at_the_same_time_fire_once_for_the_same_feedback(
    schedule: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    schedule(cron=None, on_feedback=2, overlap="allow")
    give(publish_version(), 2)

    def look_once(_number: int) -> bool:
        with system_session(system_engine) as session:
            return process_next_due(session)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(look_once, range(12))) == 1
    assert outcomes(system_engine) == ["fired"]


def test_a_scheduler_that_dies_before_it_commits_loses_no_feedback(
    schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    schedule(cron=None, on_feedback=1)
    give(publish_version())
    with pytest.raises(ZeroDivisionError), system_session(system_engine) as session:
        assert process_next_due(session)
        raise ZeroDivisionError
    assert outcomes(system_engine) == []
    assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["fired"]


def test_feedback_on_what_a_schedule_does_not_train_does_not_count(
    schedule: Ask,
    look: Ask,
    publish_version: Ask,
    give: Ask,
    make_caller: Callable[..., Caller],
    make_key: Callable[..., str],
    open_client: Callable[..., Client],
) -> None:
    schedule(cron=None, on_feedback=1)
    give(publish_version("winter"))
    for names in (("globex", "main"), ("acme", "other")):
        publish_version(owner=make_caller(*names))
        give(f"{names[1]}.summer@v1", by=open_client(make_key(*names)))
    assert look() == 0
    give(publish_version())
    assert look() == 1


def test_what_has_come_before_a_schedule_was_made_or_resumed_does_not_count(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask
) -> None:
    version = publish_version()
    give(version, 5)
    made = schedule(cron=None, on_feedback=2)
    assert made["new_feedback"] == 0 and look() == 0
    ask("post", f"/schedules/{made['id']}/pause")
    give(version, 2)
    assert look() == 0
    assert ask("post", f"/schedules/{made['id']}/resume")["new_feedback"] == 0
    give(version)
    assert look() == 0
    give(version)
    assert look() == 1


def test_an_expert_that_is_yet_to_be_trained_has_no_feedback(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask
) -> None:
    made = schedule(cron=None, on_feedback=1, training=TRAINING | {"suffix": "Yet to come"})
    assert (made["on_feedback"], made["new_feedback"]) == (1, 0)
    assert look() == 0 and ask("get", "/experts")["data"] == []
    give(publish_version("yet-to-come"))
    assert look() == 1


def test_a_training_without_a_suffix_is_of_the_expert_that_its_file_names(
    schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    schedule(cron=None, on_feedback=1, training=TRAINING | {"suffix": None})
    give(publish_version("suite"))
    assert look() == 1
    assert trainings(system_engine)[-1].spec["expert"] == "suite"


def test_a_schedule_that_cannot_know_its_expert_is_refused(
    schedule: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    make_file(caller, b"no json\n", name="broken.jsonl")
    with pytest.raises(openai.BadRequestError) as caught:
        schedule(dataset="broken", cron=None, on_feedback=1, training=TRAINING | {"suffix": None})
    assert caught.value.param == "training.suffix"


def test_a_schedule_that_turns_to_another_expert_fires_for_its_feedback_though_the_counts_are_alike(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    made = schedule(cron=None, on_feedback=1, overlap="allow")
    give(publish_version())
    assert look() == 1
    body = {"name": "weekly", "dataset": "suite", "training": TRAINING | {"suffix": "winter"}, "overlap": "allow"}
    ask("put", f"/schedules/{made['id']}", body | {"on_feedback": 1})
    give(publish_version("winter"))
    assert look() == 1
    assert outcomes(system_engine) == ["fired", "fired"]


def test_enough_feedback_while_a_job_runs_is_left_to_the_policy(
    schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    version = publish_version()
    schedule(cron=None, on_feedback=2)
    for _ in range(2):
        give(version, 2)
        assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["fired", "skipped_overlap"]
