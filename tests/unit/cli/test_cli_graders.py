"""Graders checked and tried from the command line."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]
VALIDATE, RUN = "/v1/fine_tuning/alpha/graders/validate", "/v1/fine_tuning/alpha/graders/run"
GRADER = {"type": "numeric", "name": "sum", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
GRADED: dict[str, Any] = {
    "reward": 1.0,
    "sub_rewards": {},
    "metadata": {
        "name": "sum",
        "type": "numeric",
        "execution_time": 0.01,
        "errors": {"other_error": False, "sample_parse_error": False},
        "detail": None,
    },
}


@pytest.fixture
def grader(tmp_path: Path) -> str:
    path = tmp_path / "grader.json"
    path.write_text(json.dumps(GRADER))
    return str(path)


def test_a_grader_is_checked(api: Any, zhub: Run, grader: str, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("POST", VALIDATE, {"grader": GRADER | {"tolerance": 0.0}})
    assert zhub("graders", "validate", grader) == 0
    assert "the numeric grader 'sum' is right" in capsys.readouterr().err
    assert zhub("graders", "validate", grader, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tolerance"] == 0.0
    assert api.bodies("POST", VALIDATE) == [{"grader": GRADER}] * 2


@pytest.mark.parametrize("item", ['{"answer": "4"}', "rows.jsonl"])
def test_an_answer_is_graded_with_the_columns_of_a_row(
    api: Any, zhub: Run, grader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: str
) -> None:
    api.add("POST", RUN, GRADED)
    (tmp_path / "rows.jsonl").write_text('{"answer": "3"}\n{"answer": "4"}\n')
    monkeypatch.chdir(tmp_path)
    assert zhub("graders", "run", grader, "--sample", "It is 4.", "--item", item, "--line", "2") == 0
    assert api.bodies("POST", RUN) == [{"grader": GRADER, "model_sample": "It is 4.", "item": {"answer": "4"}}]


def test_an_answer_can_come_from_standard_input(
    api: Any, zhub: Run, grader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add("POST", RUN, GRADED)
    monkeypatch.setattr("sys.stdin", io.StringIO("several\nlines"))
    assert zhub("graders", "run", grader, "--sample", "-") == 0
    assert api.bodies("POST", RUN)[0]["model_sample"] == "several\nlines"


def test_a_grader_that_fails_says_why_and_exits_with_one(
    api: Any, zhub: Run, grader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {"python_grader_runtime_error": True, "python_grader_runtime_error_details": "NameError: x"}
    details = GRADED["metadata"] | {"errors": errors, "detail": "it broke"}
    api.add("POST", RUN, GRADED | {"reward": 0.0, "metadata": details, "sub_rewards": {"form": 0.5}})
    assert zhub("graders", "run", grader, "--sample", "4") == 1
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (rows["reward"], rows["form"], rows["because"]) == ("0", "0.5", "it broke")
    assert rows["python"].endswith("NameError: x")


@pytest.mark.parametrize(
    ("item", "line", "words"),
    [
        ("{", "1", "--item: expected a JSON object"),
        ("none.jsonl", "1", "none.jsonl: the row cannot be read"),
        ("rows.jsonl", "3", "rows.jsonl has no line 3"),
        ("rows.jsonl", "2", "rows.jsonl, line 2: expected a JSON object"),
    ],
)
def test_a_row_that_cannot_be_read_is_one_line(
    zhub: Run,
    grader: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    item: str,
    line: str,
    words: str,
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"answer": "3"}\n[]\n')
    monkeypatch.chdir(tmp_path)
    assert zhub("graders", "run", grader, "--sample", "4", "--item", item, "--line", line) == 1
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1
