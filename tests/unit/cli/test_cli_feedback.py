"""Commands on feedback."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import pytest

from zhub.datasets.rows import unique_rows

Run = Callable[..., int]


def test_feedback_is_given_on_a_prompt(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--prompt", "Sort.", "--completion", "ba", "--score", "-1", "--reference", "ab")
    assert zhub("feedback", "add", "default.sorting@prod", *options) == 0
    assert "Stored as fb-1, for default.sorting@v1." in capsys.readouterr().err
    assert api.bodies("POST", "/v1/feedback") == [
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
    assert api.bodies("POST", "/v1/feedback")[0]["messages"] == asked


@pytest.mark.parametrize("options", [(), ("--prompt", "a", "--messages", "b"), ("--prompt", "a", "--score", "1.5")])
def test_feedback_without_one_prompt_or_with_another_score_is_a_usage_error(
    zhub: Run, api: Any, options: tuple[str, ...]
) -> None:
    assert zhub("feedback", "add", "default.sorting@v1", "--completion", "ab", "--score", "1", *options) == 2
    assert api.requests == []


def test_the_newest_feedback_of_an_expert_is_listed(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    many = [api_examples.FEEDBACK | {"id": f"fb-{number}"} for number in range(5)]
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
    said = api_examples.FEEDBACK | {"messages": [{"role": "user", "content": "Häs\u2028\n?"}]}
    again = said | {"id": "fb-2", "completion": "another"}
    unsaid = api_examples.FEEDBACK | {"id": "fb-3", "reference": None}
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
