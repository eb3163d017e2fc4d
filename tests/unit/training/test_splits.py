"""Which rows train, validate and test."""

from pathlib import Path

import pytest
from tiny_training import PROMPTS, write_rows

from zhub.datasets.splits import prompt_position
from zhub.errors import (
    TrainingError,
)
from zhub_workers.training.splits import split_dataset


def test_a_validation_file_is_halved_and_its_prompts_are_never_trained_on(tmp_path: Path) -> None:
    training = write_rows(tmp_path / "t", PROMPTS)
    validation = write_rows(tmp_path / "v", [*PROMPTS[:20], *(f"new {n}" for n in range(20))])
    splits = split_dataset(training, validation)
    positions = {name: {prompt_position(row.prompt) for row in rows} for name, rows in splits.items()}
    assert len(positions["train"]) == 60
    assert not positions["train"] & (positions["validation"] | positions["test"])
    assert not positions["validation"] & positions["test"]
    assert len(positions["validation"]) + len(positions["test"]) == 40
    assert positions["validation"] and positions["test"]


def test_a_validation_file_that_leaves_nothing_to_train_on_or_to_test_on_is_refused(tmp_path: Path) -> None:
    training = write_rows(tmp_path / "t", PROMPTS[:12])
    with pytest.raises(TrainingError, match="none is left"):
        split_dataset(training, write_rows(tmp_path / "all", PROMPTS[:12]))
    with pytest.raises(TrainingError, match="At least 2"):
        split_dataset(training, write_rows(tmp_path / "one", ["only this"]))


@pytest.mark.parametrize("with_file", [False, True])
def test_rows_that_repeat_are_trained_on_once_or_as_often_as_they_stand(tmp_path: Path, with_file: bool) -> None:
    training = write_rows(tmp_path / "t", [prompt for n, prompt in enumerate(PROMPTS) for _ in range(1 + n % 3)])
    held_out = [*PROMPTS[:9], *(f"new {n}" for n in range(9))] * 2
    validation = write_rows(tmp_path / "v", held_out) if with_file else None
    once, often = (split_dataset(training, validation, duplicates=how) for how in ("drop", "keep"))
    texts = {name: [row.messages[0]["content"] for row in rows] for name, rows in often.items()}
    assert all(texts["train"].count(text) == 1 + PROMPTS.index(text) % 3 for text in texts["train"])
    for name, rows in once.items():
        distinct = {row.messages[0]["content"] for row in rows}
        assert len(rows) == len(distinct) and set(texts[name]) == distinct
    assert not set(texts["train"]) & {*texts["validation"], *texts["test"]}
    for name in ("validation", "test"):  # each measured row counts once
        assert len(texts[name]) == len(set(texts[name]))
