"""Commands on schedules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
