"""Commands on stored completions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import pytest

Run = Callable[..., int]
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_250,
    "model": "default.sorting@prod",
    "experts": [{"name": api_examples.EXPERT, "digest": "d", "weight": 1.0}],
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "ba [b]"}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"},
    ],
    "metadata": {"team": "search"},
    "rating": {"mean": 0.5, "choice": 1, "count": 2},
}
MESSAGES = [{"id": "chatcmpl-1-0", "role": "user", "content": "Sort [a].", "content_parts": None}]
SETTINGS = {"object": "s", "enabled": True, "kept_days": 7, "redact": ["email"], "stored_bytes": 1234}
PROVENANCE = {
    "where": "rating:up", "method": "supervised", "rows": 2, "left_out": 1, "cut": False,
    "oldest_at": "2026-01-31T10:00:00+00:00", "newest_at": "2026-02-01T10:00:00+00:00",
}  # fmt: skip
MADE = {
    "id": "cds-1", "created_at": 1, "dataset": "liked", "where": "rating:up", "max_rows": 10, "status": "succeeded",
    "error": None, "file": "file-1", "provenance": PROVENANCE,
}  # fmt: skip
FILE = {
    "id": "file-1", "filename": "liked.jsonl", "bytes": 10, "created_at": 1, "status": "processed", "version": 1,
    "status_details": None, "sha256": "aa", "validation": {"rows": 2, "duplicate_count": 0}, "completions": PROVENANCE,
}  # fmt: skip
PATH = "/v1/chat/completions"


@pytest.fixture
def api(api: Any) -> Any:
    api.add("GET", PATH, api_double.page([COMPLETION, COMPLETION | {"rating": None}]))
    api.add("GET", f"{PATH}/chatcmpl-1", COMPLETION)
    api.add("GET", f"{PATH}/chatcmpl-1/messages", api_double.page(MESSAGES))
    api.add("POST", f"{PATH}/chatcmpl-1/feedback", api_examples.FEEDBACK)
    api.add("DELETE", f"{PATH}/chatcmpl-1", {"deleted": True})
    api.add("DELETE", "/v1/stored_completions", {"deleted": True})
    api.add("GET", "/v1/stored_completions/settings", SETTINGS)
    api.add("POST", "/v1/stored_completions/settings", SETTINGS)
    api.add("POST", "/v1/stored_completions/datasets", MADE | {"status": "queued", "file": None, "provenance": None})
    api.add("GET", "/v1/stored_completions/datasets/cds-1", MADE)
    api.add("GET", "/v1/files/file-1", FILE)
    return api


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (("enable",), {"enabled": True}),
        (("enable", "--kept-days", "7", "--redact", "email, card"), {
            "enabled": True, "kept_days": 7, "redact": ["email", "card"],
        }),
        (("enable", "--redact", "none"), {"enabled": True, "redact": []}),
        (("disable",), {"enabled": False}),
    ],
)  # fmt: skip
def test_storing_is_turned_on_and_off(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], body: dict[str, Any]
) -> None:
    assert zhub("completions", *options) == 0
    assert api.bodies("POST", "/v1/stored_completions/settings") == [body]
    shown = capsys.readouterr().out
    assert "7 days" in shown and "email" in shown and "1,234" in shown


def test_completions_are_listed_with_their_best_rated_answer(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("completions", "ls", "--model", "m", "--metadata", "team=search", "--limit", "2") == 0
    shown = capsys.readouterr().out
    assert "+0.50 (2)" in shown and " ab " in shown and "ba [b]" in shown
    params = api.requests[0].url.params
    assert (params["model"], params["metadata[team]"], params["order"]) == ("m", "search", "desc")


def test_a_completion_is_shown_with_what_was_asked(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("completions", "show", "chatcmpl-1") == 0
    shown = capsys.readouterr().out
    for part in ("Sort [a].", "ba [b]", "choice 1", "team=search", api_examples.EXPERT):
        assert part in shown
    assert zhub("completions", "show", "chatcmpl-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["messages"] == MESSAGES


def test_a_completion_is_rated(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--score", "-1", "--choice", "1", "--reference", "ab")
    assert zhub("completions", "rate", "chatcmpl-1", *options) == 0
    assert api.bodies("POST", f"{PATH}/chatcmpl-1/feedback") == [
        {"score": -1.0, "choice": 1, "reference": "ab", "comment": None}
    ]
    assert "Stored as fb-1" in capsys.readouterr().err


def test_one_and_all_are_deleted(zhub: Run, api: Any) -> None:
    assert zhub("completions", "rm", "chatcmpl-1") == 0
    assert zhub("completions", "clear", "--yes") == 0
    assert [request.url.path for request in api.requests] == [f"{PATH}/chatcmpl-1", "/v1/stored_completions"]


def test_a_dataset_is_made_and_says_of_what(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("datasets", "from-completions", "liked", "--where", "rating:up", "--max-rows", "10") == 0
    assert api.bodies("POST", "/v1/stored_completions/datasets") == [
        {"dataset": "liked", "where": "rating:up", "method": "supervised", "max_rows": 10}
    ]
    said = capsys.readouterr()
    assert "2 completions, stored from 2026-01-31T10:00 to 2026-02-01T10:00 UTC; 1 that are no rows" in said.err
    assert "rating:up" in said.out


def test_refining_is_a_dataset_and_a_schedule_with_small_steps_and_a_gate(
    zhub: Run, api: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = {"alias": "prod", "rule": "not_worse", "suites": [{"file": "file-1"}]}
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(gate))
    options = ("--at", "100", "--gate", str(path), "--set", "n_steps=5")
    assert zhub("schedules", "refine", "live", "default.sorting@prod", *options) == 0
    query = "expert:default.sorting rating:up"
    assert api.bodies("POST", "/v1/stored_completions/datasets") == [
        {"dataset": "live", "where": query, "method": "supervised"}
    ]
    (schedule,) = api.bodies("POST", "/v1/schedules")
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_steps": 5, "step_kl": 0.0001}}}
    training = {"model": "default.sorting@prod", "suffix": "sorting", "method": method, "promotion": gate}
    assert schedule == {
        "name": "live", "dataset": "live", "training": training, "on_new_data": True, "on_completions": 100,
        "completions_where": query, "overlap": "buffer_one",
    }  # fmt: skip
    assert "zhub schedules run live" in capsys.readouterr().err
    assert zhub("schedules", "refine", "live", "default.sorting", *options) == 2


def test_a_dataset_that_cannot_be_made_says_why(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failed = MADE | {"status": "failed", "error": "There is no stored completion.", "file": None, "provenance": None}
    api.add("GET", "/v1/stored_completions/datasets/cds-1", failed)
    assert zhub("datasets", "from-completions", "liked") == 1
    assert "There is no stored completion." in capsys.readouterr().err
