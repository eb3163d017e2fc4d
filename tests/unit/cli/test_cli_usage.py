"""``zhub usage``."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., int]
RESULT = {"num_model_requests": 2, "input_tokens": 1200, "input_cached_tokens": 16, "output_tokens": 34}
MODEL = {"model": "main.sums@v1", "project_id": None, "api_key_id": None}
BUCKETS = [
    {"start_time": 1_767_225_600, "results": [RESULT | MODEL]},
    {"start_time": 1_767_312_000, "results": []},
]


def page(buckets: list[Any], next_page: str | None) -> dict[str, Any]:
    return {"object": "page", "data": buckets, "has_more": next_page is not None, "next_page": next_page}


def test_the_usage_of_each_model_is_shown_by_day(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/organization/usage/completions", page(BUCKETS, None))
    assert zhub("usage", "--since", "2026-01-01T05:30+00:00") == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["FROM", "(UTC)"]
    assert row.split() == ["2026-01-01", "main.sums@v1", "2", "1,200", "16", "34"]
    (asked,) = [request.url.params for request in api.requests]
    assert (asked["start_time"], asked["bucket_width"], asked["group_by"]) == ("1767225600", "1d", "model")


def test_without_usage_that_is_said(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/organization/usage/completions", page([], None))
    assert zhub("usage") == 0
    assert "No request of a model was answered" in capsys.readouterr().err


def test_usage_as_json_is_what_the_api_says(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/organization/usage/completions", page(BUCKETS, None))
    assert zhub("usage", "--by", "key", "--by", "project", "--json") == 0
    assert json.loads(capsys.readouterr().out) == BUCKETS
    assert api.requests[0].url.params.get_list("group_by") == ["api_key_id", "project_id"]
