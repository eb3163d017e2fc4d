"""``zhub costs``, and usage and costs as comma-separated values."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import api_examples
import pytest

from zhub.cli.output import money

Run = Callable[..., int]
GROUPS: dict[str, Any] = dict.fromkeys(("project_id", "api_key_id", "expert", "base_model"))
HOURS = {"line_item": "worker hours, gpu", "quantity": 2.5, "quantity_unit": "duration_hours", "unpriced": []}
TOKENS = {"line_item": "output tokens, tiny", "quantity": 1200.0, "quantity_unit": "tokens"}
PRICED = GROUPS | HOURS | {"amount": {"value": 5.0, "currency": "eur"}}
UNPRICED = GROUPS | TOKENS | {"amount": None, "unpriced": ["output tokens, tiny"]}
BUCKETS = [
    {"start_time": 1_767_225_600, "results": [PRICED, UNPRICED]},
    {"start_time": 1_767_312_000, "results": []},
    {"start_time": 1_767_398_400, "results": [PRICED]},
]


@pytest.fixture
def asked(api: Any) -> Any:
    api.add("GET", "/v1/organization/costs", {"data": BUCKETS, "has_more": False, "next_page": None})
    api.add("GET", "/v1/organization/limits", {"budgets": [{"used": 12.5, "budget": 100, "unit": "EUR"}]})
    return api


def test_each_days_lines_are_shown_with_their_sum(zhub: Run, asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("costs", "--since", "2026-01-01T05:30+00:00") == 0
    shown = capsys.readouterr()
    _, hours, tokens, _ = shown.out.splitlines()
    assert hours.split() == ["2026-01-01", "worker", "hours,", "gpu", "2.5", "hours", "5.00", "EUR"]
    assert tokens.split()[-4:] == ["1,200", "tokens", "no", "price"]
    assert "In all 10.00 EUR." in shown.err
    assert "Of this month's budget, 100.00 EUR, 12.50 are used." in shown.err
    assert "Without a price, and so in no cost: output tokens, tiny." in shown.err
    params = asked.requests[0].url.params
    assert (params["start_time"], params["group_by"]) == ("1767225600", "line_item")


def test_costs_are_divided_as_asked(zhub: Run, asked: Any) -> None:
    assert zhub("costs", "--by", "expert", "--by", "project", "--json") == 0
    assert asked.requests[0].url.params.get_list("group_by") == ["expert", "project_id"]


def test_costs_as_json_are_what_the_api_says(zhub: Run, asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("costs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == BUCKETS


def test_costs_as_csv_are_read_by_other_programs(zhub: Run, asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("costs", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["day"], row["line_item"], row["amount"], row["currency"]) for row in rows] == [
        ("2026-01-01", "worker hours, gpu", "5.0", "EUR"),
        ("2026-01-01", "output tokens, tiny", "", ""),
        ("2026-01-03", "worker hours, gpu", "5.0", "EUR"),
    ]
    assert rows[1]["unpriced"] == "output tokens, tiny"


def test_without_use_that_is_said(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/organization/costs", {"data": [], "has_more": False, "next_page": None})
    api.add("GET", "/v1/organization/limits", {"budgets": []})
    assert zhub("costs") == 0
    assert "Nothing was used" in capsys.readouterr().err


def test_usage_as_csv_has_a_line_for_each_bucket_and_group(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"num_model_requests": 2, "input_tokens": 1200, "input_cached_tokens": 16, "output_tokens": 34}
    buckets = [{"start_time": 1_767_225_600, "results": [counts | {"model": "a, b"}]}]
    api.add("GET", "/v1/organization/usage/completions", {"data": buckets, "has_more": False, "next_page": None})
    assert zhub("usage", "--csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row == {"from": "2026-01-01T00:00:00+00:00", "model": "a, b"} | {n: str(c) for n, c in counts.items()}


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0.00 EUR"), (1234.5, "1,234.50 EUR"), (0.00123, "0.0012 EUR"), (1e-7, "0.0000001 EUR")]
)
def test_an_amount_below_a_cent_is_not_nothing(value: float, shown: str) -> None:
    assert money(value, "eur") == shown


def test_a_job_is_shown_with_what_it_took_and_cost(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spent = {"worker_seconds": 3660.0, "cost": {"value": 2.5, "currency": "eur"}}
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1", api_examples.JOB | spent)
    assert zhub("jobs", "show", "ftjob-1") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["worker", "time", "1", "h", "1", "min"] in lines
    assert ["cost", "2.50", "EUR"] in lines


@pytest.mark.parametrize(("shares", "shown"), [(False, "2.50 EUR"), (True, "2.50 EUR at most: it shares a worker")])
def test_a_dry_run_shows_the_cost_before(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str], shares: bool, shown: str
) -> None:
    method = {"type": "reinforcement", "reinforcement": {"hyperparameters": {"n_steps": 40}}}
    cost = {"expected_cost": {"value": 2.5, "currency": "eur"}, "shares_a_worker": shares, "method": method}
    api.add("POST", "/v1/fine_tuning/jobs/estimate", api_examples.ESTIMATE | cost)
    assert zhub("submit", "file-1", "--base", "zhub-tiny", "--dry-run") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("cost ") and line.endswith(f" {shown}") for line in lines)
