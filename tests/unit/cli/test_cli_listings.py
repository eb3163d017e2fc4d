"""The options that listings share: what they send, and which values they refuse."""

import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import api_double
import api_examples
import pytest
import typer

from zhub.cli.listings import parse_since

Run = Callable[..., int]

OPTIONS = [
    (
        ("jobs", "ls", "--status", "failed", "--state", "running", "--method", "dpo", "--expert", "sorting"),
        [("status", "failed"), ("status", "running"), ("method", "dpo"), ("expert", "sorting")],
    ),
    (
        ("jobs", "ls", "--search", "sort", "--sort", "oldest", "--limit", "7", "--archived", "--tag", "team=a"),
        [("search", "sort"), ("order", "asc"), ("limit", "7"), ("archived", "true"), ("metadata[team]", "a")],
    ),
    (
        ("evaluations", "ls", "--status", "failed", "--model", "tiny", "--search", "x", "--limit", "3"),
        [("status", "failed"), ("model", "tiny"), ("search", "x"), ("limit", "3")],
    ),
    (
        ("feedback", "ls", "default.sorting", "--min-score", "-1", "--max-score", "0", "--search", "x"),
        [("model", "default.sorting"), ("min_score", "-1.0"), ("max_score", "0.0"), ("search", "x"), ("limit", "20")],
    ),
    (("webhooks", "ls", "--status", "disabled", "--search", "x"), [("status", "disabled"), ("search", "x")]),
    (("schedules", "ls", "--status", "paused", "--search", "x"), [("status", "paused"), ("search", "x")]),
]


@pytest.mark.parametrize(("arguments", "sent"), OPTIONS)
def test_the_options_of_a_listing_are_sent(
    arguments: tuple[str, ...], sent: list[tuple[str, str]], api: Any, zhub: Run
) -> None:
    assert zhub(*arguments) == 0
    asked = api.requests[-1].url.params.multi_items()
    assert [pair for pair in sent if pair not in asked] == []


@pytest.mark.parametrize("listing", ["jobs", "evaluations", "feedback", "webhooks", "schedules"])
def test_a_listing_without_options_sends_no_filter(listing: str, api: Any, zhub: Run) -> None:
    assert zhub(listing, "ls") == 0
    known = {"limit", "order", "archived"}
    assert set(api.requests[-1].url.params) <= known


def test_a_limit_ends_the_reading_of_pages(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [api_examples.JOB | {"id": f"ftjob-{number}"} for number in range(2)]
    api.add("GET", "/v1/fine_tuning/jobs", api_double.page(jobs, has_more=True))
    assert zhub("jobs", "ls", "--limit", "2", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert len(api.requests) == 1


def test_since_is_a_span_until_now_or_a_date() -> None:
    now = int(time.time())
    for span, seconds in (("90m", 5400), ("12h", 43200), ("7d", 604_800), ("2w", 1_209_600)):
        assert now - seconds <= parse_since(span) <= int(time.time()) - seconds
    assert parse_since("2026-01-31T12:00:00+01:00") == 1_769_857_200
    assert parse_since("2026-01-31") == datetime(2026, 1, 31).timestamp()
    assert parse_since("99999w") == 0


@pytest.mark.parametrize("text", ["", "yesterday", "3", "h", "-1h", "2026-13-01"])
def test_a_time_that_cannot_be_read_is_a_usage_error(text: str, zhub: Run) -> None:
    with pytest.raises(typer.BadParameter, match="expected 90m"):
        parse_since(text)
    assert zhub("jobs", "ls", f"--since={text}") == 2


def test_a_job_that_learned_nothing_is_marked_in_the_listing(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    means = {"base_mean": 0.25, "expert_mean": 0.75, "p_value": 0.01}
    results = [
        {"best_step": 0, "learned_nothing": True, **means},
        {"best_step": 9, "learned_nothing": False, **means},
        {"best_step": 9, "learned_nothing": False, **means | {"p_value": 0.4}},
        None,
    ]
    jobs = [api_examples.JOB | {"id": f"ftjob-{n}", "result": result} for n, result in enumerate(results)]
    api.add("GET", "/v1/fine_tuning/jobs", api_double.page(jobs))
    assert zhub("jobs", "ls") == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    shown = ("learned nothing", "25.0 % → 75.0 %", "25.0 % → 75.0 % (noise)", " - ")
    assert [words in row for words, row in zip(shown, rows, strict=True)] == [True] * 4
    assert "noise" not in rows[1]


def test_schedules_are_sorted_by_when_they_run_next(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"never": [], "later": [1_900_000_000], "soon": [1_800_000_000]}
    schedules = [api_examples.SCHEDULE | {"name": name, "next_runs": times} for name, times in runs.items()]
    api.add("GET", "/v1/schedules", api_double.page(schedules))
    assert zhub("schedules", "ls", "--sort", "next", "--limit", "2") == 0
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()] == ["NAME", "soon", "later"]
