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
