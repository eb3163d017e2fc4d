"""Schedules through the API: made, changed, deleted, and refused where they could never run."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from schedule_ticks import TRAINING, make_due, trainings
from sqlalchemy import Engine, func, select
from suites import GRADER, sums

from zhub.database.sessions import system_session
from zhub.models import Expert
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]


def test_a_schedule_says_when_it_runs_next(ask: Ask, schedule: Ask) -> None:
    made = schedule(timezone="Europe/Paris")
    assert (made["status"], made["dataset"], made["overlap"], made["failures"]) == ("active", "suite", "skip", 0)
    runs = [datetime.fromtimestamp(run, UTC) for run in made["next_runs"]]
    assert len(runs) == 5 and all(run > datetime.now(UTC) and run.isoweekday() == 1 for run in runs)
    assert ask("get", "/schedules")["data"] == [made]
    assert ask("get", f"/schedules/{made['id']}") == made


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"cron": None}, 400, "cron"),
        ({"cron": "0 3 * *"}, 400, "cron"),
        ({"timezone": "Mars"}, 400, "timezone"),
        ({"dataset": "none"}, 404, None),
        ({"name": "Not a name"}, 400, "name"),
        ({"training": TRAINING | {"training_file": "file-0"}}, 400, "training.training_file"),
        ({"training": TRAINING | {"nonsense": 1}}, 400, "training.nonsense"),
        ({"training": TRAINING | {"model": "none"}}, 404, None),
        ({"training": TRAINING | {"method": {"type": "magic"}}}, 400, "training.method.type"),
        ({"training": {"model": "tiny", "method": {"type": "supervised"}}}, 400, "training.training_file"),
        ({"training": TRAINING | {"depends_on": ["ftjob-" + "0" * 32]}}, 400, "training.depends_on"),
        ({"training": TRAINING | {"promotion": {"alias": "v1", "suites": []}}}, 400, "training.promotion.suites"),
        ({"overlap": "sometimes"}, 400, "overlap"),
        ({"jitter_s": -1}, 400, "jitter_s"),
        ({"catch_up_s": 10**9}, 400, "catch_up_s"),
        ({"on_feedback": 0}, 400, "on_feedback"),
        ({"on_feedback": 1.5}, 400, "on_feedback"),
    ],
)
def test_what_could_never_run_is_refused_and_leaves_nothing(
    ask: Ask, schedule: Ask, system_engine: Engine, changed: dict[str, Any], status: int, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        schedule(**changed)
    assert (caught.value.status_code, caught.value.param) == (status, param)
    assert ask("get", "/schedules")["data"] == [] and trainings(system_engine) == []


def test_the_gate_of_a_schedule_is_checked_when_it_is_made(schedule: Ask, suite_file: str) -> None:
    gate = {"alias": "v1", "suites": [{"file": suite_file, "grader": GRADER}]}
    with pytest.raises(openai.BadRequestError) as caught:
        schedule(training=TRAINING | {"promotion": gate})
    assert caught.value.param == "training.promotion.alias"


def test_the_graders_of_a_schedule_are_checked_also_while_its_dataset_has_no_version(
    schedule: Ask, make_file: Ask, make_base_model: Ask, caller: Caller
) -> None:
    make_file(caller, b"no json\n", name="later.jsonl")
    grader = GRADER | {"operation": "regex"}
    training = TRAINING | {"method": {"type": "reinforcement", "reinforcement": {"grader": grader}}}
    with pytest.raises(openai.BadRequestError) as refused:
        schedule(dataset="later", training=training)
    assert refused.value.param == "training.method.reinforcement.grader.operation"


def test_a_schedule_may_search_a_mixture_of_what_an_alias_points_to(
    ask: Ask, schedule: Ask, publish_version: Ask, system_engine: Engine, look: Callable[[], int]
) -> None:
    name = publish_version("winter")
    ask("put", "/experts/main.winter/aliases/prod", {"version": name})
    search = {"type": "few_shot", "few_shot": {"grader": GRADER, "experts": ["main.winter@prod"]}}
    schedule(training=TRAINING | {"method": search})
    make_due(system_engine)
    look()
    (job,) = (job for job in trainings(system_engine) if job.spec.get("recipe") == "few_shot")
    assert [start["name"] for start in job.spec["starts"]] == [name]


def test_making_a_schedule_creates_no_expert(schedule: Ask, system_engine: Engine) -> None:
    schedule()
    with system_session(system_engine) as session:
        assert session.scalar(select(func.count()).select_from(Expert)) == 0


def test_two_schedules_of_one_name_are_refused(schedule: Ask) -> None:
    schedule()
    with pytest.raises(openai.ConflictError, match="'weekly' already"):
        schedule()


def test_a_schedule_is_not_changed_to_the_name_of_another(ask: Ask, schedule: Ask, publish_version: Ask) -> None:
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version()})
    schedule()
    other = schedule(name="daily")
    body = {"name": "weekly", "dataset": "suite", "training": TRAINING, "on_regression": "main.summer@prod"}
    with pytest.raises(openai.ConflictError, match="'weekly' already"):
        ask("put", f"/schedules/{other['id']}", body)


def test_a_schedule_can_be_changed_and_deleted(ask: Ask, schedule: Ask, look: Ask, system_engine: Engine) -> None:
    made = schedule()
    body = {"name": "daily", "dataset": "suite", "training": TRAINING, "cron": "0 4 * * *", "overlap": "allow"}
    changed = ask("put", f"/schedules/{made['id']}", body)
    assert (changed["id"], changed["name"], changed["cron"], changed["overlap"]) == (
        made["id"],
        "daily",
        "0 4 * * *",
        "allow",
    )
    make_due(system_engine)
    look()
    assert ask("delete", f"/schedules/{made['id']}")["deleted"] is True
    with pytest.raises(openai.NotFoundError):
        ask("get", f"/schedules/{made['id']}")
    assert len(trainings(system_engine)) == 1


def test_a_schedule_can_be_changed_from_times_to_what_happens_and_back(ask: Ask, schedule: Ask) -> None:
    made = schedule()
    body = {"name": "weekly", "dataset": "suite", "training": TRAINING}
    changed = ask("put", f"/schedules/{made['id']}", body | {"on_new_data": True, "on_feedback": 5})
    assert (changed["cron"], changed["on_feedback"], changed["next_runs"]) == (None, 5, [])
    back = ask("put", f"/schedules/{made['id']}", body | {"cron": made["cron"]})
    assert (back["on_feedback"], back["new_feedback"], back["next_runs"]) == (None, None, made["next_runs"])


def test_an_edit_changes_what_it_names_and_nothing_else(ask: Ask, schedule: Ask) -> None:
    made = schedule(overlap="allow", jitter_s=5)
    method = {"reinforcement": {"hyperparameters": {"n_steps": 7}}}
    edited = ask("patch", f"/schedules/{made['id']}", {"name": "daily", "training": {"method": method}})
    expected = json.loads(json.dumps(TRAINING))
    expected["method"]["reinforcement"].setdefault("hyperparameters", {})["n_steps"] = 7
    assert (edited["name"], edited["training"]) == ("daily", expected)
    unchanged = made.keys() - {"name", "training"}
    assert {name: edited[name] for name in unchanged} == {name: made[name] for name in unchanged}


def test_null_removes_a_field_and_a_grader_is_replaced_as_a_whole(ask: Ask, schedule: Ask) -> None:
    made = schedule(on_feedback=3)
    grader = {"type": "numeric", "name": "sum", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    changes = {"on_feedback": None, "training": {"suffix": None, "method": {"reinforcement": {"grader": grader}}}}
    edited = ask("patch", f"/schedules/{made['id']}", changes)
    assert (edited["on_feedback"], "suffix" in edited["training"]) == (None, False)
    assert edited["training"]["method"]["reinforcement"]["grader"] == grader


def test_an_edit_of_the_time_gives_new_runs_and_any_other_keeps_them(ask: Ask, schedule: Ask) -> None:
    made = schedule()
    assert ask("patch", f"/schedules/{made['id']}", {"overlap": "allow"})["next_runs"] == made["next_runs"]
    other = ask("patch", f"/schedules/{made['id']}", {"cron": "0 4 * * 2"})["next_runs"]
    assert len(other) == 5 and set(other).isdisjoint(made["next_runs"])


def test_an_edit_leaves_the_feedback_that_has_come_counted(
    ask: Ask, schedule: Ask, give: Ask, publish_version: Ask
) -> None:
    version = publish_version()
    made = schedule(cron=None, on_feedback=3)
    give(version, 2)
    assert ask("patch", f"/schedules/{made['id']}", {"overlap": "allow"})["new_feedback"] == 2
    assert ask("patch", f"/schedules/{made['id']}", {"training": {"suffix": "winter"}})["new_feedback"] == 0


def test_an_edit_leaves_new_data_that_was_not_trained_on_new(
    ask: Ask, schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    made = schedule(cron=None, on_new_data=True)
    make_file(caller, sums(30))
    ask("patch", f"/schedules/{made['id']}", {"overlap": "allow"})
    assert look() == 1 and len(trainings(system_engine)) == 1


def test_an_edit_keeps_the_alias_that_is_watched(ask: Ask, schedule: Ask, publish_version: Ask) -> None:
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version()})
    made = schedule(on_regression="main.summer@prod")
    edited = ask("patch", f"/schedules/{made['id']}", {"overlap": "allow"})
    assert edited["on_regression"] == "main.summer@prod"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"cron": None}, "cron"),
        ({"name": None}, "name"),
        ({"overlap": "sometimes"}, "overlap"),
        ({"no_such": 1}, "no_such"),
        ({"training": {"method": {"type": "magic"}}}, "training.method.type"),
        ({"training": {"nonsense": 1}}, "training.nonsense"),
        ({"training": None}, "training"),
    ],
)
def test_an_edit_that_could_never_run_is_refused_and_changes_nothing(
    ask: Ask, schedule: Ask, changes: dict[str, Any], param: str
) -> None:
    made = schedule()
    with pytest.raises(openai.BadRequestError) as caught:
        ask("patch", f"/schedules/{made['id']}", changes)
    assert caught.value.param == param
    assert ask("get", f"/schedules/{made['id']}") == made


def test_an_edit_that_adds_a_gate_needs_the_right_to_promote(
    schedule: Ask, suite_file: str, make_key: Callable[..., str], open_client: Callable[..., openai.OpenAI]
) -> None:
    made = schedule()
    gate = {"alias": "prod", "suites": [{"file": suite_file, "grader": GRADER}]}
    client = open_client(make_key(scopes=("jobs:read", "jobs:write")))
    with pytest.raises(openai.PermissionDeniedError):
        client.patch(f"/schedules/{made['id']}", cast_to=object, body={"training": {"promotion": gate}})


def test_schedules_are_found_by_status_and_by_their_names(ask: Ask, schedule: Ask) -> None:
    weekly, daily = schedule(), schedule(name="daily")
    ask("post", f"/schedules/{daily['id']}/pause")

    def names(query: str) -> list[str]:
        return [found["name"] for found in ask("get", f"/schedules?{query}")["data"]]

    assert names("status=paused") == ["daily"] and names("status=active") == ["weekly"]
    assert names("search=WEEK") == ["weekly"] and names("search=suite") == ["daily", "weekly"]
    assert names("search=nothing") == [] and weekly["status"] == "active"
