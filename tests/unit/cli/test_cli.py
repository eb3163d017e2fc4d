"""The command line as a whole: what it prints where, how it exits, and how it finds its zhub."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import pytest

from zhub.client.credentials import Credentials, read_credentials, write_credentials
from zhub.demo import walk
from zhub.errors import InvalidRequestError

Run = Callable[..., int]


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
    write_credentials(tmp_path, Credentials(url, api_examples.KEY))
    assert zhub("jobs", "ls", "--data-dir", str(tmp_path)) == 0


def test_only_its_owner_can_read_the_key(tmp_path: Path) -> None:
    write_credentials(tmp_path, Credentials("http://127.0.0.1:1", "old"))
    write_credentials(tmp_path, Credentials("http://127.0.0.1:1", "new"))
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_credentials(tmp_path) == Credentials("http://127.0.0.1:1", "new")


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
    api.add("GET", "/readyz", {"status": "ok", "scheduler": False, "agents": 1, "serving": True})
    api.add("GET", "/v1/base_models", api_double.page([]))
    api.add("GET", "/v1/files", api_double.page([]))
    limits = {"max_queued": 500, "max_bytes": 10, "stored_bytes": 9, "requests_per_minute": 12000}
    api.add("GET", "/v1/organization/limits", limits)
    assert zhub("doctor", "--json") == 1
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)}
    assert states == {
        "API": "ok", "scheduler": "broken", "agents": "ok", "serving": "ok", "API key": "ok",
        "base models": "warning", "limits": "ok", "object store": "ok",
    }  # fmt: skip


@pytest.mark.parametrize(("stored_bytes", "state"), [(9_000, "ok"), (9_001, "warning")])
def test_a_doctor_shows_the_limits_of_the_organisation(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str], stored_bytes: int, state: str
) -> None:
    api.add("GET", "/healthz", {"status": "ok", "version": "0.1.0"})
    api.add("GET", "/readyz", {"status": "ok", "scheduler": True, "agents": 1, "serving": False})
    api.add("GET", "/v1/base_models", api_double.page([]))
    api.add("GET", "/v1/files", api_double.page([]))
    limits = {"max_queued": 500, "max_bytes": 10_000, "stored_bytes": stored_bytes, "requests_per_minute": 12000}
    api.add("GET", "/v1/organization/limits", limits)
    zhub("doctor", "--json")
    (check,) = [check for check in json.loads(capsys.readouterr().out) if check["name"] == "limits"]
    assert check["state"] == state
    assert "500 jobs waiting" in check["found"] and "12,000 requests a minute" in check["found"]


def test_a_doctor_says_that_nobody_can_chat_while_serving_is_silent(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("GET", "/healthz", {"status": "ok", "version": "0.1.0"})
    api.add("GET", "/readyz", {"status": "ok", "scheduler": True, "agents": 1, "serving": False})
    assert zhub("doctor", "--json") == 1
    (check,) = [check for check in json.loads(capsys.readouterr().out) if check["name"] == "serving"]
    assert (check["state"], check["found"]) == ("broken", "does not answer")
    assert "Nobody can chat" in check["fix"] and "agent.log" in check["fix"]


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
