"""How trainings went, in tables, lines and CSV."""

import json
from collections.abc import Callable
from typing import Any

import api_examples
import pytest

from zhub.cli.curves import drawn
from zhub.client.wire.training import SeriesPoint

Run = Callable[..., int]


def points(*values: float, every: int = 1) -> list[dict[str, Any]]:
    return [{"step": step * every, "value": value} for step, value in enumerate(values)]


def series(name: str, *values: float, count: int | None = None) -> dict[str, Any]:
    return {"name": name, "count": len(values) if count is None else count, "points": points(*values)}


@pytest.fixture
def two_jobs(api: Any) -> None:
    """Two jobs, the second twice as long and higher."""
    for number, values in ((1, (0.0, 0.5)), (2, (0.25, 0.5, 1.0))):
        path = f"/v1/fine_tuning/jobs/ftjob-{number}"
        api.add("GET", path, api_examples.JOB | {"id": f"ftjob-{number}"})
        api.add("GET", f"{path}/metrics", {"series": [series("valid_reward_mean", *values), series("loss", 1.0, 2.0)]})


def test_metrics_are_shown_with_their_course(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    points = [{"step": step, "value": value} for step, value in enumerate((2.0, 1.0, 3.0))]
    series = [{"name": "train_loss", "count": 900, "points": points}]
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1/metrics", {"series": series})
    assert zhub("jobs", "metrics", "ftjob-1") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["train_loss", "900", "2", "3", "1", "3", "▅▁█"]


def test_curves_are_compared_on_one_scale(zhub: Run, two_jobs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("jobs", "curve", "ftjob-1", "ftjob-2") == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()[1:]]
    assert rows == [
        ["ftjob-1", "default.sorting@v1", "0", "0.5", "0.5", "1", "▁▅"],
        ["ftjob-2", "default.sorting@v1", "0.25", "1", "1", "2", "▃▅█"],
    ]
    assert "valid_reward_mean: the lowest block is 0, the highest 1" in err


def test_a_job_without_the_metric_stays_in_the_comparison_and_none_with_it_is_an_error(
    api: Any, zhub: Run, two_jobs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1/metrics", {"series": [series("loss", 1.0)]})
    assert zhub("jobs", "curve", "ftjob-1", "ftjob-2") == 0
    assert "it has no such metric" in capsys.readouterr().out.splitlines()[1]
    assert zhub("jobs", "curve", "ftjob-1", "ftjob-2", "--metric", "lss") == 1
    assert "Their metrics: loss, valid_reward_mean." in capsys.readouterr().err


def test_metrics_of_a_job_as_csv_have_a_line_for_each_step(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = {"name": "valid", "count": 1, "points": [{"step": 2, "value": 0.5}]}
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1/metrics", {"series": [series("loss", 0.1, 1e-9, 3.0), sparse]})
    assert zhub("jobs", "metrics", "ftjob-1", "--csv") == 0
    out, err = capsys.readouterr()
    assert out == "step,loss,valid\n0,0.1,\n1,1e-09,\n2,3.0,0.5\n" and err == ""
    assert api.requests[-1].url.params["points"] == "2000"


def test_a_series_that_was_thinned_is_said_to_be(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.add("GET", "/v1/fine_tuning/jobs/ftjob-1/metrics", {"series": [series("loss", 1.0, 2.0, count=5000)]})
    assert zhub("jobs", "metrics", "ftjob-1", "--csv") == 0
    assert "Thinned to 2,000 points, the extremes kept: loss." in capsys.readouterr().err


def test_curves_as_csv_and_json_are_by_job(zhub: Run, two_jobs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("jobs", "curve", "ftjob-1", "ftjob-2", "--csv") == 0
    assert capsys.readouterr().out == "step,ftjob-1,ftjob-2\n0,0.0,0.25\n1,0.5,0.5\n2,,1.0\n"
    assert zhub("jobs", "curve", "ftjob-1", "ftjob-2", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)) == ["ftjob-1", "ftjob-2"]


def test_a_long_curve_is_drawn_in_forty_blocks_that_hold_its_course() -> None:
    line = drawn([SeriesPoint(step=step, value=float(step)) for step in range(0, 1001, 10)])
    assert len(line) == 40 and line[0] == "▁" and line[-1] == "█" and list(line) == sorted(line)
