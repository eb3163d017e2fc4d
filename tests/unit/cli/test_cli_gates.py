"""Gates in files, for a submitted training and for a schedule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_examples
import pytest

Run = Callable[..., int]
HELD_OUT = {
    "id": "file-9", "filename": "held-out.jsonl", "bytes": 3, "created_at": 1, "sha256": "", "version": 1,
    "status": "processed", "status_details": None, "validation": {"rows": 1, "duplicate_count": 0},
}  # fmt: skip
SUBMIT = ("submit", "file-1", "--base", "zhub-tiny")
SCHEDULE = ("schedules", "add", "weekly", "rows", "--base", "zhub-tiny")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A gate that names its rows by a path from its own folder."""
    (tmp_path / "held-out.jsonl").write_text("{}\n")
    path = tmp_path / "gate.json"
    path.write_text(json.dumps({"rule": "better", "suites": [{"file": "held-out.jsonl", "min_mean": 0.8}]}))
    return path


@pytest.fixture
def files(api: Any) -> Any:
    """The API, which takes files and jobs."""
    api.add("POST", "/v1/files", HELD_OUT)
    api.add("GET", "/v1/files/file-9", HELD_OUT)
    api.add("POST", "/v1/fine_tuning/jobs", api_examples.JOB)
    return api


def promotion_of(api: Any, command: tuple[str, ...]) -> Any:
    if command == SUBMIT:
        (body,) = api.bodies("POST", "/v1/fine_tuning/jobs")
        return body["promotion"]
    (body,) = api.bodies("POST", "/v1/schedules")
    return body["training"]["promotion"]


@pytest.mark.parametrize("command", [SUBMIT, SCHEDULE])
def test_a_gate_names_its_rows_by_a_path_which_is_uploaded_as_no_new_data(
    command: tuple[str, ...], files: Any, zhub: Run, gate: Path
) -> None:
    more = ("--cron", "0 3 * * 1") if command == SCHEDULE else ()
    assert zhub(*command, *more, "--gate", str(gate)) == 0
    (uploaded,) = (sent for sent in files.requests if (sent.method, sent.url.path) == ("POST", "/v1/files"))
    assert b'filename="held-out.jsonl"' in uploaded.content and b"\r\n\r\nevals\r\n" in uploaded.content
    assert promotion_of(files, command) == {"rule": "better", "suites": [{"file": "file-9", "min_mean": 0.8}]}


def test_a_gate_may_name_a_file_that_was_uploaded(files: Any, zhub: Run, gate: Path) -> None:
    gate.write_text(json.dumps({"suites": [{"file": "file-7"}]}))
    assert zhub(*SUBMIT, "--gate", str(gate)) == 0
    assert promotion_of(files, SUBMIT) == {"suites": [{"file": "file-7"}]}


def test_rows_of_a_gate_that_are_missing_are_named_and_nothing_is_submitted(
    files: Any, zhub: Run, gate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (gate.parent / "held-out.jsonl").unlink()
    assert zhub(*SUBMIT, "--gate", str(gate)) == 1
    err = capsys.readouterr().err
    assert str(gate.parent / "held-out.jsonl") in err and len(err.splitlines()) == 1
    assert files.bodies("POST", "/v1/fine_tuning/jobs") == []


@pytest.mark.parametrize("content", ["[]", "7", '{"suites": 3}', '{"suites": ["x", {"file": 5}, {}]}'])
def test_what_is_no_gate_is_sent_as_it_is_for_the_api_to_refuse(
    content: str, files: Any, zhub: Run, gate: Path
) -> None:
    gate.write_text(content)
    assert zhub(*SUBMIT, "--gate", str(gate)) == 0
    assert promotion_of(files, SUBMIT) == json.loads(content)
