"""Commands on jobs: submitted, watched, waiting, their checkpoints, logs and metrics."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import httpx
import pytest

from zhub.cli.output import sparkline
from zhub.cli.submit import parse_settings

Run = Callable[..., int]
JOB_EVENTS = "/v1/fine_tuning/jobs/ftjob-1/events"


def test_watching_prints_events_and_then_the_expert(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("jobs", "watch", "ftjob-1") == 0
    out, err = capsys.readouterr()
    assert [line.split("  ")[-1] for line in err.splitlines()] == ["event 1", "event 2"]
    assert "25.0 % [20.0, 30.0]" in out
    assert "75.0 % [70.0, 80.0]" in out


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_watching_a_job_that_failed_exits_with_seven(
    status: str, api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"code": "reward_error", "message": "the row has no column 'item.answer'"} if status == "failed" else None
    job = api_examples.JOB | {"status": status, "fine_tuned_model": None, "error": error}
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", job)
    api.add("GET", JOB_EVENTS, api_double.events_of([api_double.event(1)], job))
    assert zhub("jobs", "watch", "ftjob-1") == 7
    assert ("no column" if error else status) in capsys.readouterr().out


def test_a_dry_run_shows_what_a_job_would_take(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    method = {"type": "reinforcement", "reinforcement": {"hyperparameters": {"n_steps": 40}}}
    api.add("POST", "/v1/fine_tuning/jobs/estimate", api_examples.ESTIMATE | {"method": method})
    assert zhub("submit", "file-1", "--base", "zhub-tiny", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "default.sums" in out and "n_steps=40" in out and "1 h 1 min" in out and "beside other small jobs" in out
    assert "Nothing was submitted" in err


@pytest.mark.parametrize(
    ("command", "purpose"),
    [
        (("datasets", "push"), "fine-tune"),
        (("submit", "--base", "zhub-tiny"), "user_data"),
        (("submit", "--base", "zhub-tiny", "--dry-run"), "user_data"),
        (("evaluations", "create", "zhub-tiny"), "evals"),
    ],
)
def test_only_what_is_pushed_is_new_data(
    api: Any, zhub: Run, tmp_path: Path, command: tuple[str, ...], purpose: str
) -> None:
    api.refuse("POST", "/v1/files", 400, "invalid_request", "It was seen.")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    assert zhub(*command, str(rows)) == 1
    assert f'name="purpose"\r\n\r\n{purpose}\r\n'.encode() in api.requests[-1].content


def test_submitting_sends_the_grader_and_the_settings(api: Any, zhub: Run) -> None:
    api.add("POST", "/v1/fine_tuning/jobs", api_examples.JOB | {"status": "queued", "fine_tuned_model": None})
    assert (
        zhub("submit", "file-1", "--base", "zhub-tiny", "--set", "n_steps=2", "--suffix", "sorting", "--seed", "1") == 0
    )
    sent = json.loads(api.requests[-1].content)
    assert (sent["model"], sent["training_file"], sent["suffix"], sent["seed"]) == ("zhub-tiny", "file-1", "sorting", 1)
    assert sent["method"]["reinforcement"]["hyperparameters"] == {"n_steps": 2}
    assert sent["method"]["reinforcement"]["grader"]["reference"] == "{{item.answer}}"


@pytest.mark.parametrize(
    ("options", "field", "sent"),
    [
        ((), "cluster", None),
        (("--cluster", "h100"), "cluster", "h100"),
        ((), "priority", None),
        (("--priority", "3"), "priority", 3),
    ],
)
def test_submitting_names_a_cluster_and_a_priority_only_where_they_are_asked_for(
    api: Any, zhub: Run, options: tuple[str, ...], field: str, sent: str | int | None
) -> None:
    api.add("POST", "/v1/fine_tuning/jobs", api_examples.JOB)
    assert zhub("submit", "file-1", "--base", "zhub-tiny", *options) == 0
    assert json.loads(api.requests[-1].content).get(field) == sent


def test_a_job_is_shown_with_its_priority(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", api_examples.JOB | {"priority": 4})
    assert zhub("jobs", "show", "ftjob-1") == 0
    assert ["priority", "4"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("change", ["pause", "resume", "cancel"])
def test_a_requested_change_is_sent_and_the_job_shown(
    change: str, api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("POST", f"/v1/fine_tuning/jobs/ftjob-1/{change}", api_examples.JOB | {"status": "paused"})
    assert zhub("jobs", change, "ftjob-1") == 0
    assert "paused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("ftjob-1", "/v1/fine_tuning/jobs/ftjob-1/queue"),
        ("eval-1", "/v1/evaluations/eval-1/queue"),
        ("eval", "/v1/base_models/eval/queue"),
    ],
)
def test_a_wait_is_explained(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str], asked: str, path: str) -> None:
    place = {
        "object": "fine_tuning.job.queue",
        "job_id": asked,
        "status": "queued",
        "position": 3,
        "reason": "2 jobs are served before it: 2 of others'.",
        "estimated_start": None,
        "expected_seconds": 99.0,
    }
    api.add("GET", path, place)
    assert zhub("queue", "explain", asked) == 0
    shown = capsys.readouterr().out
    assert "2 jobs are served before it" in shown and "not known yet" in shown and "1 min 39 s" in shown


def test_a_jobs_checkpoints_are_listed_by_the_names_that_answer(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("jobs", "checkpoints", "ftjob-1") == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:3] == ["default.sorting@ftjob-1:step-20", "20", "62.5"]


def test_a_setting_is_a_number_a_truth_value_or_text() -> None:
    assert parse_settings(["a=1", "b=0.5", "c=auto", "d=true"]) == {"a": 1, "b": 0.5, "c": "auto", "d": True}


def test_a_sparkline_goes_from_nothing_to_all() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"


def test_events_can_be_followed_to_the_end(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("jobs", "events", "ftjob-1", "--follow") == 0
    assert [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()] == ["event 1", "event 2"]
    assert zhub("jobs", "events", "ftjob-1", "-f", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ["ftevent-1", "ftevent-2"]


@pytest.fixture
def logs(api: Any) -> list[dict[str, str]]:
    """A log of two lines at its route, as it is or followed; what was asked of it."""
    asked: list[dict[str, str]] = []
    lines = [
        {"at": f"2026-01-01T00:00:0{second}.000Z", "level": "info", "logger": "x", "message": message, "fence": 1}
        for second, message in enumerate(("one", "two\x1b[31m\nlines"))
    ]

    def answer(request: httpx.Request) -> bytes:
        asked.append(dict(request.url.params))
        if request.url.params.get("stream"):
            told = "".join(f"id: 1/0/{number}\ndata: {json.dumps(line)}\n\n" for number, line in enumerate(lines))
            return f"{told}event: end\ndata: {{}}\n\n".encode()
        return "".join(f"{json.dumps(line)}\n" for line in lines).encode()

    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1/logs", answer)
    return asked


@pytest.mark.parametrize("follow", [(), ("--follow",)], ids=str)
def test_a_log_is_printed_line_by_line(
    zhub: Run, logs: list[dict[str, str]], capsys: pytest.CaptureFixture[str], follow: tuple[str, ...]
) -> None:
    assert zhub("jobs", "logs", "ftjob-1", *follow) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-01-01T00:00:00.000Z  info x: one",
        "2026-01-01T00:00:01.000Z  info x: two\ufffd[31m",
        "lines",
    ]
    assert zhub("jobs", "logs", "ftjob-1", *follow, "--attempt", "1", "--tail", "2", "--json") == 0
    found = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
    assert found == ["one", "two\x1b[31m\nlines"]
    plain = {"attempt": "1", "tail": "2"}
    assert logs[-1] == ({"stream": "true"} | plain if follow else plain)


def test_the_tags_of_a_job_are_set_and_removed_and_the_others_stay(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    job = api_examples.JOB | {"metadata": {"team": "a", "round": "1"}}
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", job)
    api.add("PATCH", "/v1/fine_tuning/jobs/ftjob-1", job)
    assert zhub("jobs", "tag", "ftjob-1", "round=2", "note=x=y", "--remove", "team") == 0
    assert api.bodies("PATCH", "/v1/fine_tuning/jobs/ftjob-1") == [{"metadata": {"round": "2", "note": "x=y"}}]
    assert "round=1, team=a" in capsys.readouterr().out
    assert zhub("jobs", "tag", "ftjob-1", "nonsense") == 2


def test_a_job_is_described(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("PATCH", "/v1/fine_tuning/jobs/ftjob-1", api_examples.JOB | {"description": "With more rows."})
    assert zhub("jobs", "describe", "ftjob-1", "With more rows.") == 0
    assert api.bodies("PATCH", "/v1/fine_tuning/jobs/ftjob-1") == [{"description": "With more rows."}]
    assert "With more rows." in capsys.readouterr().out


@pytest.mark.parametrize(("command", "archived"), [("archive", True), ("unarchive", False)])
def test_several_jobs_are_archived_and_listed_again(command: str, archived: bool, api: Any, zhub: Run) -> None:
    for number in (1, 2):
        api.add("PATCH", f"/v1/fine_tuning/jobs/ftjob-{number}", api_examples.JOB)
    assert zhub("jobs", command, "ftjob-1", "ftjob-2") == 0
    for number in (1, 2):
        assert api.bodies("PATCH", f"/v1/fine_tuning/jobs/ftjob-{number}") == [{"archived": archived}]


def test_a_watcher_who_loses_zhub_is_told_that_the_job_goes_on(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhub.client.jobs.MAX_OUTAGE_S", -1)
    api.refuse("GET", "/v1/fine_tuning/jobs/ftjob-1", 503, "unavailable", "The database does not answer.")
    assert zhub("jobs", "watch", "ftjob-1") == 1
    err = capsys.readouterr().err
    assert "The database does not answer." in err
    assert "goes on once zhub runs again" in err and "`zhub jobs watch ftjob-1`" in err


def test_every_time_that_is_shown_has_its_zone(
    zhub: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert zhub("jobs", "show", "ftjob-1") == 0
        assert zhub("jobs", "events", "ftjob-1") == 0
    finally:
        monkeypatch.undo()
        time.tzset()
    out = capsys.readouterr().out
    assert "2023-11-15 03:43:20+05:30" in out
    assert all("+05:30  event" in line for line in out.splitlines() if "event " in line)


def test_a_search_is_submitted_with_the_experts_that_it_mixes(api: Any, zhub: Run) -> None:
    api.add("POST", "/v1/fine_tuning/jobs", api_examples.JOB)
    mixed = ("--mix", "default.sorting@v1", "--mix", "default.support@prod", "--set", "shots=5")
    assert zhub("submit", "file-1", "--base", "zhub-tiny", "--method", "few_shot", *mixed) == 0
    (body,) = api.bodies("POST", "/v1/fine_tuning/jobs")
    search = body["method"]["few_shot"]
    assert body["method"]["type"] == "few_shot" and search["grader"]["type"] == "string_check"
    assert (search["experts"], search["hyperparameters"]) == (
        ["default.sorting@v1", "default.support@prod"],
        {"shots": 5},
    )


@pytest.mark.parametrize("options", [("--method", "few_shot"), ("--method", "dpo", "--mix", "default.sorting@v1")])
def test_experts_to_mix_go_with_a_search_and_with_nothing_else(
    zhub: Run, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("submit", "file-1", "--base", "zhub-tiny", *options) == 2
    assert "--mix" in capsys.readouterr().err


def test_a_search_is_shown_with_what_it_mixes(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    search = {"hyperparameters": {"n_steps": 2}, "experts": ["default.sorting@v1", "default.reversal@v2"]}
    api.add(
        "GET", "/v1/fine_tuning/jobs/ftjob-1", api_examples.JOB | {"method": {"type": "few_shot", "few_shot": search}}
    )
    assert zhub("jobs", "show", "ftjob-1") == 0
    assert "default.sorting@v1, default.reversal@v2" in " ".join(capsys.readouterr().out.split())
