"""Commands on datasets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zhub.datasets.splits import split_of
from zhub.demo import walk
from zhub.demo.plans import tiny_plan
from zhub.demo.task_families import FAMILIES

Run = Callable[..., int]


def test_sampled_rows_are_those_of_the_demo(zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("datasets", "sample") == 0
    out, err = capsys.readouterr()
    (sorting,) = [task for task in tiny_plan().tasks if task.name == "sorting"]
    assert (out, err) == (walk.write_rows(sorting, tmp_path).read_text(), "")


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_rows_of_each_family_hold_right_answers(
    family: str, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("datasets", "sample", family, "--rows", "20", "--seed", "3") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    prompts = [row["messages"][0]["content"] for row in rows]
    assert len(set(prompts)) == 20
    assert [row["answer"] for row in rows] == [FAMILIES[family].right(prompt) for prompt in prompts]


def test_held_out_rows_are_in_no_training_split(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("datasets", "sample", "sorting", "--held-out", "--rows", "150") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 150 and {split_of(row["messages"]) for row in rows} == {"test"}


def test_an_unknown_family_is_a_usage_error_that_lists_them(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("datasets", "sample", "sortings") == 2
    err = capsys.readouterr().err
    assert all(family in err for family in FAMILIES)


@pytest.mark.parametrize("options", [("--rows", "5000"), ("--rows", "1000", "--held-out")])
def test_the_smallest_family_has_as_many_rows_as_may_be_asked_for(
    options: tuple[str, ...], zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("datasets", "sample", "expression", *options) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == int(options[1])


@pytest.mark.parametrize("options", [("--rows", "5001"), ("--rows", "1001", "--held-out"), ("--rows", "0")])
def test_more_rows_than_a_family_is_sure_to_have_are_a_usage_error(options: tuple[str, ...], zhub: Run) -> None:
    assert zhub("datasets", "sample", "expression", *options) == 2
