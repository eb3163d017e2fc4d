"""The command line against an API of this machine: what it prints where, and how it exits."""

import io
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import api_double
import httpx
import pytest

from zhub.cli import main
from zhub.cli.output import sparkline
from zhub.cli.submit import parse_settings
from zhub.client.credentials import Credentials, read_credentials, write_credentials
from zhub.datasets.rows import unique_rows
from zhub.demo import walk
from zhub.errors import InvalidRequestError

Run = Callable[..., int]
JOB_EVENTS = "/v1/fine_tuning/jobs/ftjob-1/events"


@pytest.fixture
def api() -> Any:
    api = api_double.Api()
    api.add(
        "GET",
        JOB_EVENTS,
        api_double.events_of([api_double.event(1), api_double.event(2, step=1, train_reward_mean=0.5)]),
    )
    return api


@pytest.fixture
def url(api: Any) -> Iterator[str]:
    with api_double.served(api) as address:
        yield address


@pytest.fixture
def zhub(url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command against the API; its exit code."""
    for name in ("ZHUB_DEBUG", "ZHUB_DATA_DIR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZHUB_API_URL", url)
    monkeypatch.setenv("ZHUB_API_KEY", api_double.KEY)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert isinstance(ended.value.code, int | None)
        return ended.value.code or 0

    return run


def test_a_listing_goes_to_standard_output_and_nothing_else(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("jobs", "ls") == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["ID", "STATUS"], ["ftjob-1", "succeeded"]]
    assert err == ""


@pytest.mark.parametrize(
    "arguments",
    [("jobs", "ls"), ("jobs", "show", "ftjob-1"), ("experts", "ls"), ("experts", "show", "default.sorting@v1")],
)
def test_json_is_the_apis_own(arguments: tuple[str, ...], zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found[0] if isinstance(found, list) else found)["id"] in ("ftjob-1", "default.sorting@v1")


@pytest.mark.parametrize(
    "status,code,exit_code",
    [(400, "invalid_request", 1), (401, "invalid_api_key", 3), (403, "missing_scope", 3), (404, "not_found", 4),
     (409, "conflict", 5), (500, "internal_error", 1)],
)  # fmt: skip
def test_a_refusal_is_one_line_and_an_exit_code(
    status: int, code: str, exit_code: int, api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse("POST", "/v1/fine_tuning/jobs/ftjob-1/cancel", status, code, "It cannot be done.")
    assert zhub("jobs", "cancel", "ftjob-1") == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: It cannot be done.")
    assert len(err.splitlines()) == 1


def test_an_unknown_option_is_a_usage_error(zhub: Run) -> None:
    assert zhub("jobs", "ls", "--nonsense") == 2


def test_an_address_without_a_key_is_refused(
    zhub: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZHUB_API_KEY")
    assert zhub("jobs", "ls") == 3
    assert "Set ZHUB_API_KEY" in capsys.readouterr().err


def test_without_any_zhub_the_error_says_how_to_start_one(
    zhub: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZHUB_API_URL")
    assert zhub("jobs", "ls", "--data-dir", str(tmp_path)) == 1
    assert "`zhub up`" in capsys.readouterr().err


def test_the_local_zhub_is_found_by_its_data_directory(
    url: str, zhub: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ZHUB_API_URL")
    monkeypatch.delenv("ZHUB_API_KEY")
    write_credentials(tmp_path, Credentials(url, api_double.KEY))
    assert zhub("jobs", "ls", "--data-dir", str(tmp_path)) == 0


def test_only_its_owner_can_read_the_key(tmp_path: Path) -> None:
    write_credentials(tmp_path, Credentials("http://127.0.0.1:1", "old"))
    write_credentials(tmp_path, Credentials("http://127.0.0.1:1", "new"))
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_credentials(tmp_path) == Credentials("http://127.0.0.1:1", "new")


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
    job = api_double.JOB | {"status": status, "fine_tuned_model": None, "error": error}
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", job)
    api.add("GET", JOB_EVENTS, api_double.events_of([api_double.event(1)], job))
    assert zhub("jobs", "watch", "ftjob-1") == 7
    assert ("no column" if error else status) in capsys.readouterr().out


def test_a_dry_run_shows_what_a_job_would_take(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    estimate = {
        "object": "fine_tuning.job.estimate",
        "expert": "default.sums",
        "method": {"type": "reinforcement", "reinforcement": {"hyperparameters": {"n_steps": 40}}},
        "seed": 1,
        "workers": 1,
        "shares_a_worker": True,
        "expected_seconds": 3700.0,
        "expected_worker_seconds": 3700.0,
    }
    api.add("POST", "/v1/fine_tuning/jobs/estimate", estimate)
    assert zhub("submit", "file-1", "--base", "zhub-tiny", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "default.sums" in out and "n_steps=40" in out and "1 h 1 min" in out and "beside other small jobs" in out
    assert "Nothing was submitted" in err


def test_submitting_sends_the_grader_and_the_settings(api: Any, zhub: Run) -> None:
    api.add("POST", "/v1/fine_tuning/jobs", api_double.JOB | {"status": "queued", "fine_tuned_model": None})
    assert (
        zhub("submit", "file-1", "--base", "zhub-tiny", "--set", "n_steps=2", "--suffix", "sorting", "--seed", "1") == 0
    )
    sent = json.loads(api.requests[-1].content)
    assert (sent["model"], sent["training_file"], sent["suffix"], sent["seed"]) == ("zhub-tiny", "file-1", "sorting", 1)
    assert sent["method"]["reinforcement"]["hyperparameters"] == {"n_steps": 2}
    assert sent["method"]["reinforcement"]["grader"]["reference"] == "{{item.answer}}"


@pytest.mark.parametrize(("options", "sent"), [((), None), (("--cluster", "h100"), "h100")])
def test_submitting_names_a_cluster_only_where_one_is_asked_for(
    api: Any, zhub: Run, options: tuple[str, ...], sent: str | None
) -> None:
    api.add("POST", "/v1/fine_tuning/jobs", api_double.JOB)
    assert zhub("submit", "file-1", "--base", "zhub-tiny", *options) == 0
    assert json.loads(api.requests[-1].content).get("cluster") == sent


@pytest.mark.parametrize("wish", ["pause", "resume", "cancel"])
def test_a_wish_is_sent_and_the_job_shown(wish: str, api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("POST", f"/v1/fine_tuning/jobs/ftjob-1/{wish}", api_double.JOB | {"status": "paused"})
    assert zhub("jobs", wish, "ftjob-1") == 0
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


def test_an_evaluation_is_shown_beside_the_others_with_its_verdict(
    zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("evaluations", "show", "eval-1") == 0
    lines = capsys.readouterr().out.splitlines()
    (base,) = [line for line in lines if line.startswith("zhub-tiny")]
    assert "25.0 % [20.0, 30.0]" in base and "+50.0 [+42.0, +58.0]" in base and base.endswith("better")
    assert lines[-1] == "default.sorting@v1 is better than zhub-tiny."


def test_creating_an_evaluation_sends_what_was_said_and_leaves_the_rest_to_the_server(api: Any, zhub: Run) -> None:
    arguments = ("--compare-with", "a.b@v1", "-k", "2", "--wait")
    assert zhub("evaluations", "create", api_double.EXPERT, "file-1", *arguments) == 0
    (sent,) = [json.loads(request.content) for request in api.requests if request.method == "POST"]
    assert {name: sent[name] for name in ("model", "file", "compare_with", "k")} == {
        "model": api_double.EXPERT,
        "file": "file-1",
        "compare_with": ["a.b@v1"],
        "k": 2,
    }
    assert set(sent) == {"model", "file", "compare_with", "k", "grader"}


@pytest.mark.parametrize("wanted", ["h100", None])
@pytest.mark.parametrize("kind", ["evaluations", "promotions"])
def test_what_is_measured_goes_to_the_cluster_that_is_named(api: Any, zhub: Run, kind: str, wanted: str | None) -> None:
    option = ["--cluster", wanted] if wanted else []
    assert zhub(kind, "create", api_double.EXPERT, "file-1", *option) == 0
    (sent,) = [json.loads(request.content) for request in api.requests if request.method == "POST"]
    assert sent.get("cluster") == wanted


def test_waiting_for_an_evaluation_that_failed_exits_with_seven(api: Any, zhub: Run) -> None:
    failed = {"status": "failed", "results": None, "error": {"code": "x", "message": "It broke.", "param": None}}
    for method, path in (("POST", "/v1/evaluations"), ("GET", "/v1/evaluations/eval-1")):
        api.add(method, path, api_double.EVALUATION | failed | {"others": []})
    assert zhub("evaluations", "create", api_double.EXPERT, "file-1", "--wait") == 7


def test_a_setting_is_a_number_a_truth_value_or_text() -> None:
    assert parse_settings(["a=1", "b=0.5", "c=auto", "d=true"]) == {"a": 1, "b": 0.5, "c": "auto", "d": True}


def test_the_answer_goes_to_standard_output_and_who_gave_it_to_standard_error(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {
        "choices": [{"message": {"content": "42"}, "finish_reason": "stop"}],
        "experts": [{"name": "default.sorting@v1", "digest": "d", "weight": 0.5}],
        "routing": {"strategy": "mixture", "reason": "the request gave the weights", "base_model": "zhub-tiny"},
    }
    api.add("POST", "/v1/chat/completions", answer)
    assert zhub("chat", "6 * 7?", "--mix", "default.sorting@v1=0.5", "--temperature", "0") == 0
    out, err = capsys.readouterr()
    assert out == "42\n"
    assert "0.5 × default.sorting@v1: the request gave the weights" in err
    assert json.loads(api.requests[-1].content)["experts"] == [{"model": "default.sorting@v1", "weight": 0.5}]


def test_pulling_prints_where_the_files_are(zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "pull", "default.sorting@v1", "--directory", str(tmp_path / "expert")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'expert'}\n"


def test_a_doctor_of_a_zhub_without_scheduler_exits_with_one(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("GET", "/healthz", {"status": "ok", "version": "0.1.0"})
    api.add("GET", "/readyz", {"status": "ok", "scheduler": False, "agents": 1})
    api.add("GET", "/v1/base_models", api_double.page([]))
    api.add("GET", "/v1/files", api_double.page([]))
    assert zhub("doctor", "--json") == 1
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)}
    assert states == {
        "API": "ok", "scheduler": "broken", "agents": "ok", "API key": "ok", "base models": "warning",
        "object store": "ok",
    }  # fmt: skip


def test_a_sparkline_goes_from_nothing_to_all() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"


def test_the_demo_removes_only_its_own_directory(tmp_path: Path) -> None:
    own = tmp_path / "demo"
    walk.make_directory(own)
    (own / "leftover").touch()
    walk.make_directory(own)
    assert not (own / "leftover").exists()
    (tmp_path / "precious").touch()
    with pytest.raises(InvalidRequestError, match="not made by an earlier demo"):
        walk.make_directory(tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_new_webhook_asks_for_every_event_and_shows_its_secret_on_standard_output(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("webhooks", "add", "https://hook.example.com/") == 0
    (asked,) = [json.loads(request.content) for request in api.requests if request.method == "POST"]
    assert asked["event_types"] == api_double.ENDPOINT["event_types"]
    shown = capsys.readouterr()
    assert api_double.SECRET in shown.out and api_double.SECRET not in shown.err


def test_a_webhook_can_be_asked_to_send_some_events_only(zhub: Run, api: Any) -> None:
    assert zhub("webhooks", "add", "https://x.example/", "--event", "a.b", "--event", "c.d", "--json") == 0
    assert json.loads(api.requests[-1].content)["event_types"] == ["a.b", "c.d"]


def test_a_leaked_secret_of_a_webhook_signs_nothing_more(zhub: Run, api: Any) -> None:
    assert zhub("webhooks", "rotate", "whe-1", "--leaked") == 0
    assert json.loads(api.requests[-1].content) == {"keep_old_secret_active_for_24_hours": False}


def test_deliveries_say_how_the_last_try_went_and_when_the_next_one_is(
    zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("webhooks", "deliveries", "whe-1") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("whd-1")]
    assert "pending" in line and "answered 503; next try 20" in line


@pytest.mark.parametrize(
    "arguments",
    [("ls",), ("rm", "whe-1"), ("replay", "whe-1", "whd-1")],
    ids=lambda arguments: " ".join(arguments),
)
def test_webhooks_are_listed_removed_and_replayed(zhub: Run, arguments: tuple[str, ...]) -> None:
    assert zhub("webhooks", *arguments) == 0


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ({"not_before": 1_700_000_000}, "Its receiver asked for no events before"),
        ({"not_before": 1_700_000_000, "status": "disabled", "status_details": "It answered 410 Gone."}, "410 Gone"),
    ],
)
def test_a_list_of_webhooks_says_why_nothing_is_sent(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str], endpoint: dict[str, Any], shown: str
) -> None:
    api.add("GET", "/v1/webhook_endpoints", api_double.page([api_double.ENDPOINT | endpoint]))
    assert zhub("webhooks", "ls", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["not_before"] == 1_700_000_000
    assert zhub("webhooks", "ls") == 0
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("success", "code"), [(True, 0), (False, 1)])
def test_a_test_of_a_webhook_exits_as_it_went(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str], success: bool, code: int
) -> None:
    result = {"webhook_endpoint_id": "whe-1", "event_type": "fine_tuning.job.succeeded", "delivery_id": "whd-1"}
    answer = {"success": success, "status_code": 204 if success else None, "error": None if success else "No way."}
    api.add("POST", "/v1/webhook_endpoints/whe-1/test", result | answer)
    assert zhub("webhooks", "test", "whe-1") == code
    assert ("answered 204" if success else "not delivered. No way.") in capsys.readouterr().err


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


def test_metrics_are_shown_with_their_course(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    points = [{"step": step, "value": value} for step, value in enumerate((2.0, 1.0, 3.0))]
    series = [{"name": "train_loss", "count": 900, "points": points}]
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1/metrics", {"series": series})
    assert zhub("jobs", "metrics", "ftjob-1") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["train_loss", "900", "2", "3", "1", "3", "▅▁█"]


# Promotions and schedules


def bodies(api: Any, method: str, path: str) -> list[Any]:
    """What was sent there."""
    return [json.loads(one.content) for one in api.requests if (one.method, one.url.path) == (method, path)]


def test_a_promotion_that_did_not_pass_says_why_and_exits_with_7(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "promotions",
        "create",
        "default.sorting@v1",
        "file-1",
        "--rule",
        "better",
        "--min-mean",
        "0.8",
        "--wait",
    )
    assert zhub(*arguments) == 7
    out = capsys.readouterr().out
    assert "not promoted" in out and "inside the noise" in out
    (body,) = bodies(api, "POST", "/v1/promotions")
    assert (body["model"], body["alias"], body["rule"]) == ("default.sorting@v1", "prod", "better")
    assert (body["suites"][0]["file"], body["suites"][0]["min_mean"]) == ("file-1", 0.8)


def test_promotions_are_listed_by_what_was_decided(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("promotions", "ls") == 0
    assert "not promoted" in capsys.readouterr().out


def test_an_alias_shows_its_moves_and_is_moved_by_hand(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "aliases") == 0
    assert zhub("experts", "moves", "default.sorting@prod") == 0
    out = capsys.readouterr().out
    assert out.count("default.sorting@v1") == 2 and "passed its gate" in out
    assert zhub("experts", "promote", "default.sorting@v1", "--reason", "back") == 0
    assert bodies(api, "PUT", "/v1/experts/default.sorting/aliases/prod") == [
        {"version": "default.sorting@v1", "reason": "back"}
    ]


def test_a_move_is_shown_as_json_under_the_names_of_the_api(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "moves", "default.sorting@prod", "--json") == 0
    assert "from" in json.loads(capsys.readouterr().out)["moves"][0]


def test_a_schedule_is_made_with_its_training_and_gate(zhub: Run, api: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate.json"
    gate.write_text('{"rule": "better", "suites": []}')
    options = ("--base", "zhub-tiny", "--cron", "0 3 * * 1", "--timezone", "Europe/Paris", "--set", "n_steps=5")
    assert zhub("schedules", "add", "weekly", "rows", *options, "--gate", str(gate), "--cluster", "h100") == 0
    (body,) = bodies(api, "POST", "/v1/schedules")
    assert (body["name"], body["dataset"], body["cron"]) == ("weekly", "rows", "0 3 * * 1")
    assert body["training"]["method"]["reinforcement"]["hyperparameters"] == {"n_steps": 5}
    assert body["training"]["promotion"] == {"rule": "better", "suites": []}
    assert body["training"]["cluster"] == "h100"


def test_a_schedule_by_feedback_says_how_much_of_it(zhub: Run, api: Any) -> None:
    assert zhub("schedules", "add", "weekly", "rows", "--base", "zhub-tiny", "--on-feedback", "100") == 0
    (body,) = bodies(api, "POST", "/v1/schedules")
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
    assert bodies(api, "POST", "/v1/schedules/sched-1/run") == [{}]


# Feedback


def test_feedback_is_given_on_a_prompt(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--prompt", "Sort.", "--completion", "ba", "--score", "-1", "--reference", "ab")
    assert zhub("feedback", "add", "default.sorting@prod", *options) == 0
    assert "Stored as fb-1, for default.sorting@v1." in capsys.readouterr().err
    assert bodies(api, "POST", "/v1/feedback") == [
        {
            "model": "default.sorting@prod",
            "messages": [{"role": "user", "content": "Sort."}],
            "completion": "ba",
            "score": -1.0,
            "reference": "ab",
            "comment": None,
        }
    ]


def test_feedback_is_given_on_several_messages(zhub: Run, api: Any, tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "ba"}]
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(asked))
    options = ("--messages", str(path), "--completion", "ab", "--score", "1")
    assert zhub("feedback", "add", "default.sorting@v1", *options) == 0
    assert bodies(api, "POST", "/v1/feedback")[0]["messages"] == asked


@pytest.mark.parametrize("options", [(), ("--prompt", "a", "--messages", "b"), ("--prompt", "a", "--score", "1.5")])
def test_feedback_without_one_prompt_or_with_another_score_is_a_usage_error(
    zhub: Run, api: Any, options: tuple[str, ...]
) -> None:
    assert zhub("feedback", "add", "default.sorting@v1", "--completion", "ab", "--score", "1", *options) == 2
    assert api.requests == []


def test_the_newest_feedback_of_an_expert_is_listed(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    many = [api_double.FEEDBACK | {"id": f"fb-{number}"} for number in range(5)]
    api.add("GET", "/v1/feedback", api_double.page(many, has_more=True))
    assert zhub("feedback", "ls", "default.sorting", "--limit", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[f"fb-{n}", "default.sorting@v1", "-1.00"] for n in range(3)]
    assert [request.url.params.get("model") for request in api.requests] == ["default.sorting"]


def test_a_version_shows_its_mean_score(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "ls") == 0
    assert zhub("experts", "show", "default.sorting@v1") == 0
    assert capsys.readouterr().out.count("-0.25 (3)") == 2


@pytest.mark.parametrize(("options", "left_out"), [((), 1), (("--all",), 0)])
def test_exported_feedback_is_rows_of_a_dataset_that_come_once(
    zhub: Run, api: Any, options: tuple[str, ...], left_out: int, capsys: pytest.CaptureFixture[str]
) -> None:
    said = api_double.FEEDBACK | {"messages": [{"role": "user", "content": "Häs\u2028\n?"}]}
    again = said | {"id": "fb-2", "completion": "another"}
    unsaid = api_double.FEEDBACK | {"id": "fb-3", "reference": None}
    api.add("GET", "/v1/feedback", api_double.page([said, again, unsaid]))
    assert zhub("feedback", "export", *options) == 0
    out, err = capsys.readouterr()
    found = list(unique_rows(io.BytesIO(out.encode())))
    assert [(row.messages, row.item) for row in found] == [
        (said["messages"], {"answer": "ab"}),
        *([] if left_out else [(unsaid["messages"], {})]),
    ]
    assert out.count("\n") == len(found) and f"{left_out} pieces" in err


def test_the_right_answer_goes_to_the_column_that_the_grader_reads(
    zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("feedback", "export", "--column", "expected") == 0
    assert json.loads(capsys.readouterr().out)["expected"] == "ab"


def test_feedback_is_taken_back(zhub: Run, api: Any) -> None:
    assert zhub("feedback", "rm", "fb-1") == 0
    assert api.requests[-1].method == "DELETE"
