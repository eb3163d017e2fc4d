"""Commands on schedules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_examples
import pytest

Run = Callable[..., int]


def test_a_schedule_is_made_with_its_training_and_gate(zhub: Run, api: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate.json"
    gate.write_text('{"rule": "better", "suites": []}')
    options = ("--base", "zhub-tiny", "--cron", "0 3 * * 1", "--timezone", "Europe/Paris", "--set", "n_steps=5")
    more = ("--gate", str(gate), "--cluster", "h100", "--priority", "2")
    assert zhub("schedules", "add", "weekly", "rows", *options, *more) == 0
    (body,) = api.bodies("POST", "/v1/schedules")
    assert (body["name"], body["dataset"], body["cron"]) == ("weekly", "rows", "0 3 * * 1")
    assert body["training"]["method"]["reinforcement"]["hyperparameters"] == {"n_steps": 5}
    assert body["training"]["promotion"] == {"rule": "better", "suites": []}
    assert (body["training"]["cluster"], body["training"]["priority"]) == ("h100", 2)


def test_a_schedule_by_feedback_says_how_much_of_it(zhub: Run, api: Any) -> None:
    assert zhub("schedules", "add", "weekly", "rows", "--base", "zhub-tiny", "--on-feedback", "100") == 0
    (body,) = api.bodies("POST", "/v1/schedules")
    assert (body["cron"], body["on_feedback"]) == (None, 100)


def test_a_gate_that_is_no_json_is_one_line(zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = tmp_path / "gate.json"
    gate.write_text("{")
    assert zhub("schedules", "add", "weekly", "rows", "--base", "zhub-tiny", "--gate", str(gate)) == 1
    err = capsys.readouterr().err
    assert "the gate is not JSON" in err and len(err.splitlines()) == 1


def test_a_paused_schedule_says_why_and_shows_its_ticks(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("schedules", "show", "weekly") == 0
    out = capsys.readouterr().out
    for said in (
        "It broke.",
        "0 3 * * 1 (Europe/Paris) and new data and feedback, at 37 of 100",
        "better, to get @prod",
        "fired",
        "ftjob-1",
    ):
        assert said in out


def test_a_schedule_is_fired_by_its_name(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("schedules", "run", "weekly") == 0
    assert "jobs watch ftjob-1" in capsys.readouterr().err
    assert api.bodies("POST", "/v1/schedules/sched-1/run") == [{}]


def test_an_edit_sends_what_it_names_and_shows_what_changed_and_the_next_runs(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    training: Any = api_examples.SCHEDULE["training"]
    training = training | {"suffix": "winter"}
    edited = api_examples.SCHEDULE | {
        "cron": "0 4 * * 1",
        "training": training,
        "status": "active",
        "next_runs": [1_900_000_000],
    }
    api.add("PATCH", "/v1/schedules/sched-1", edited)
    options = ("--cron", "0 4 * * 1", "--suffix", "winter", "--on-regression", "", "--on-feedback", "0", "--no-gate")
    assert zhub("schedules", "edit", "weekly", *options, "--set", "n_steps=7") == 0
    assert api.bodies("PATCH", "/v1/schedules/sched-1") == [
        {
            "cron": "0 4 * * 1",
            "on_regression": None,
            "on_feedback": None,
            "training": {
                "suffix": "winter",
                "promotion": None,
                "method": {"reinforcement": {"hyperparameters": {"n_steps": 7}}},
            },
        }
    ]
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["FIELD", "cron", "training.suffix"]
    assert "0 3 * * 1" in out and "0 4 * * 1" in out
    assert "weekly runs next: 2030-03-17" in err


def test_another_method_replaces_the_one_there_was(zhub: Run, api: Any) -> None:
    api.add("PATCH", "/v1/schedules/sched-1", api_examples.SCHEDULE)
    assert zhub("schedules", "edit", "weekly", "--method", "supervised") == 0
    (body,) = api.bodies("PATCH", "/v1/schedules/sched-1")
    method: dict[str, Any] = {"reinforcement": None, "type": "supervised", "supervised": {"hyperparameters": {}}}
    assert body["training"]["method"] == method


def test_an_edit_of_nothing_is_a_usage_error(zhub: Run) -> None:
    assert zhub("schedules", "edit", "weekly") == 2


def test_a_schedule_may_search_a_mixture(api: Any, zhub: Run) -> None:
    search = ("--method", "few_shot", "--mix", "default.sorting@prod", "--mix", "default.support@prod")
    assert zhub("schedules", "add", "weekly", "rows", "--base", "zhub-tiny", "--cron", "0 3 * * 1", *search) == 0
    (body,) = api.bodies("POST", "/v1/schedules")
    assert body["training"]["method"]["few_shot"]["experts"] == ["default.sorting@prod", "default.support@prod"]
