"""Benchmarks: each script has a result of its name, whose bars hold on any machine (``benchmarks/README.md``)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if '\nif __name__ == "__main__":' in path.read_text())
RESULTS = sorted(path.stem for path in (BENCHMARKS / "results").glob("*.json"))
# A bar in one of these holds on the machine that it was written on, unless it is over another's in the same run.
UNITS = re.compile(r"\b(ms|milliseconds?|seconds?|minutes?|a second|per second|bytes|MB|MiB)\b")
RATIO = re.compile(r"\b(over|times|share)\b")

of_results = pytest.mark.parametrize("name", RESULTS)


def result(name: str) -> Any:
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())


def test_each_script_has_a_result_of_its_name() -> None:
    assert SCRIPTS == RESULTS


@of_results
def test_a_script_writes_the_result_of_its_name_and_no_other(name: str) -> None:
    text = (BENCHMARKS / f"{name}.py").read_text()
    assert re.findall(r'"(\w+)\.json"', text) == [name]


@of_results
def test_a_result_has_the_documented_form(name: str) -> None:
    written = result(name)
    assert set(written) == {"name", "machine", "results", "bars"}
    assert written["name"] == name and isinstance(written["machine"], str) and written["results"]
    for bar in written["bars"].values():
        assert set(bar) == {"value", "bar", "better"} and bar["better"] in ("higher", "lower")
        assert all(isinstance(bar[key], int | float) for key in ("value", "bar"))


@of_results
def test_bars_are_ratios_or_counts(name: str) -> None:
    absolute = [what for what in result(name)["bars"] if UNITS.search(what) and not RATIO.search(what)]
    assert result(name)["bars"] and absolute == []
