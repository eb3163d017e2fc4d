"""Commands on evaluations, promotions and aliases."""

import json
from collections.abc import Callable
from typing import Any

import api_double
import api_examples
import pytest

Run = Callable[..., int]


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
    assert zhub("evaluations", "create", api_examples.EXPERT, "file-1", *arguments) == 0
    (sent,) = [json.loads(request.content) for request in api.requests if request.method == "POST"]
    assert {name: sent[name] for name in ("model", "file", "compare_with", "k")} == {
        "model": api_examples.EXPERT,
        "file": "file-1",
        "compare_with": ["a.b@v1"],
        "k": 2,
    }
    assert set(sent) == {"model", "file", "compare_with", "k", "grader"}


@pytest.mark.parametrize("wanted", ["h100", None])
@pytest.mark.parametrize("kind", ["evaluations", "promotions"])
def test_what_is_measured_goes_to_the_cluster_that_is_named(api: Any, zhub: Run, kind: str, wanted: str | None) -> None:
    option = ["--cluster", wanted] if wanted else []
    assert zhub(kind, "create", api_examples.EXPERT, "file-1", *option) == 0
    (sent,) = [json.loads(request.content) for request in api.requests if request.method == "POST"]
    assert sent.get("cluster") == wanted


def test_waiting_for_an_evaluation_that_failed_exits_with_seven(api: Any, zhub: Run) -> None:
    failed = {"status": "failed", "results": None, "error": {"code": "x", "message": "It broke.", "param": None}}
    for method, path in (("POST", "/v1/evaluations"), ("GET", "/v1/evaluations/eval-1")):
        api.add(method, path, api_examples.EVALUATION | failed | {"others": []})
    assert zhub("evaluations", "create", api_examples.EXPERT, "file-1", "--wait") == 7


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
    (body,) = api.bodies("POST", "/v1/promotions")
    assert (body["model"], body["alias"], body["rule"]) == ("default.sorting@v1", "prod", "better")
    assert (body["suites"][0]["file"], body["suites"][0]["min_mean"]) == ("file-1", 0.8)


def test_as_many_promotions_are_listed_as_were_asked_for(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [api_examples.PROMOTION | {"id": f"promo-{n}"} for n in range(3)]
    api.add("GET", "/v1/promotions", api_double.page(more, has_more=True))
    assert zhub("promotions", "ls", "--limit", "2") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ID", "promo-0", "promo-1"]
    assert api.requests[-1].url.params["limit"] == "2"


def test_promotions_are_listed_by_what_was_decided(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("promotions", "ls") == 0
    assert "not promoted" in capsys.readouterr().out


def test_an_alias_shows_its_moves_and_is_moved_by_hand(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "aliases") == 0
    assert zhub("experts", "moves", "default.sorting@prod") == 0
    out = capsys.readouterr().out
    assert out.count("default.sorting@v1") == 2 and "passed its gate" in out
    assert zhub("experts", "promote", "default.sorting@v1", "--reason", "back") == 0
    assert api.bodies("PUT", "/v1/experts/default.sorting/aliases/prod") == [
        {"version": "default.sorting@v1", "reason": "back"}
    ]


def test_a_move_is_shown_as_json_under_the_names_of_the_api(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "moves", "default.sorting@prod", "--json") == 0
    assert "from" in json.loads(capsys.readouterr().out)["moves"][0]
