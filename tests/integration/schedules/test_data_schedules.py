"""Schedules that fire for new data, and for a version that an evaluation finds worse."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from schedule_ticks import TRAINING, outcomes
from sqlalchemy import Engine, select, text
from suites import GRADER, ROWS, right_in, run

from zhub.database.sessions import system_session
from zhub.models import Schedule
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]

# New data


def test_new_data_fires_once_when_it_has_passed_its_check(
    schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    schedule(cron=None, on_new_data=True)
    assert look() == 0
    make_file(caller, ROWS + ROWS.replace(b"+ 1", b"+ 2"))
    assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["fired"]


NEW = ROWS + ROWS.replace(b"+ 1", b"+ 2")


@pytest.mark.parametrize("purpose", ["evals", "user_data"])
def test_a_file_that_was_not_pushed_fires_nothing_and_is_not_trained_on(
    ask: Ask, schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine, purpose: str
) -> None:
    made = schedule(cron=None, on_new_data=True)
    unpushed = make_file(caller, NEW, purpose=purpose)
    assert look() == 0 and outcomes(system_engine) == []
    tick = ask("post", f"/schedules/{made['id']}/run")
    assert ask("get", f"/fine_tuning/jobs/{tick['job']}")["training_file"] != unpushed


def test_equal_bytes_are_no_new_data(
    schedule: Ask, look: Ask, make_file: Ask, suite_file: str, caller: Caller, system_engine: Engine
) -> None:
    schedule(cron=None, on_new_data=True)
    assert make_file(caller) == suite_file
    assert look() == 0 and outcomes(system_engine) == []


def test_what_was_tried_first_is_new_data_once_it_is_pushed(
    schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    schedule(cron=None, on_new_data=True)
    tried = make_file(caller, NEW, purpose="user_data")
    assert look() == 0
    pushed = make_file(caller, NEW)
    assert pushed != tried and look() == 1
    assert outcomes(system_engine) == ["fired"]
    assert make_file(caller, NEW, purpose="user_data") == pushed


def test_an_older_version_that_comes_to_the_fore_is_no_new_data(
    ask: Ask, schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    newest = make_file(caller, ROWS + ROWS.replace(b"+ 1", b"+ 2"))
    schedule(cron=None, on_new_data=True)
    ask("delete", f"/files/{newest}")
    look()
    assert outcomes(system_engine) == [] and look() == 0


def test_data_that_did_not_pass_its_check_fires_nothing(
    schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    schedule(cron=None, on_new_data=True)
    make_file(caller, b"no json\n")
    assert look() == 0


def test_a_run_with_a_gate_asks_for_a_promotion(
    ask: Ask, schedule: Ask, look: Ask, suite_file: str, system_engine: Engine
) -> None:
    promotion = {"alias": "prod", "suites": [{"file": suite_file, "grader": GRADER}]}
    made = schedule(training=TRAINING | {"promotion": promotion})
    tick = ask("post", f"/schedules/{made['id']}/run")
    job = ask("get", f"/fine_tuning/jobs/{tick['job']}")
    assert ask("get", f"/promotions/{job['promotion']}")["status"] == "waiting"


def test_a_run_has_the_priority_of_its_schedule(ask: Ask, schedule: Ask) -> None:
    made = schedule(training=TRAINING | {"priority": 3})
    tick = ask("post", f"/schedules/{made['id']}/run")
    assert ask("get", f"/fine_tuning/jobs/{tick['job']}")["priority"] == 3


def test_a_full_queue_refuses_a_run_and_not_the_schedule(
    ask: Ask, schedule: Ask, system_engine: Engine, caller: Caller
) -> None:
    with system_session(system_engine) as session:
        session.execute(
            text("INSERT INTO quotas (id, org_id, max_queued) VALUES (gen_random_uuid(), :org, 0)"),
            {"org": caller.org_id},
        )
    made = schedule()
    tick = ask("post", f"/schedules/{made['id']}/run")
    assert tick["outcome"] == "refused" and "quota" in tick["message"]
    with system_session(system_engine) as session:
        assert session.scalars(select(Schedule.failures)).one() == 1


# Regressions


def test_a_version_that_an_evaluation_finds_worse_than_its_base_is_trained_anew_once(
    ask: Ask,
    schedule: Ask,
    look: Ask,
    publish_version: Ask,
    suite_file: str,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    made = schedule(cron=None, on_regression="main.summer@prod")
    assert made["on_regression"] == "main.summer@prod"
    ask("post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})
    assert look() == 0, "nothing is measured yet"
    run(system_engine, store, lambda spec: right_in(30 if spec.z is None else 5))
    assert look() == 1 and look() == 0
    (tick,) = ask("get", f"/schedules/{made['id']}/ticks")["data"]
    assert tick["outcome"] == "fired" and tick["tick"].startswith("regression:")


def test_a_version_that_is_not_worse_is_left_alone(
    ask: Ask,
    schedule: Ask,
    look: Ask,
    publish_version: Ask,
    suite_file: str,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    schedule(cron=None, on_regression="main.summer@prod")
    ask("post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})
    run(system_engine, store, lambda spec: right_in(20 if spec.z is None else 19))
    assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["no_regression"]


def test_what_is_not_watched_is_refused(schedule: Ask) -> None:
    with pytest.raises(openai.NotFoundError, match=r"main\.none"):
        schedule(on_regression="main.none@prod")
