"""Which rows of a dataset are trained on, which choose the best step, and which measure it once."""

from pathlib import Path
from typing import Literal

from zhub.datasets.rows import Row, all_rows, distinct
from zhub.datasets.splits import Split, prompt_position, split_rows
from zhub.errors import TrainingError
from zhub.recipes import MIN_PROMPTS


def split_dataset(
    training_path: Path, validation_path: Path | None, *, duplicates: Literal["drop", "keep"] = "drop"
) -> dict[Split, list[Row]]:
    """Return the rows of each split; no prompt is in two of them.

    Equal rows are there once; with ``duplicates`` ``keep`` those to train on are there as often as they stand in the
    file. Measured rows never repeat, because their intervals take each for a draw of its own.

    With a validation file, its prompts are halved into validation and test by their hash, and every row of the
    training file that has another prompt is trained on.

    Raises:
        TrainingError: fewer than MIN_PROMPTS distinct prompts, or a validation file with a single one.
    """
    splits = _split(_read(training_path), None if validation_path is None else _read(validation_path))
    repeated = {"train"} if duplicates == "keep" else set()
    return {name: rows if name in repeated else list(distinct(rows)) for name, rows in splits.items()}


def _split(training: list[Row], held_out: list[Row] | None) -> dict[Split, list[Row]]:
    prompts = {prompt_position(row.prompt) for row in training}
    if len(prompts) < MIN_PROMPTS:
        raise TrainingError(
            f"The training file has {len(prompts)} distinct prompts. At least {MIN_PROMPTS} are needed, "
            "so that the expert can be measured on prompts it never saw."
        )
    if held_out is None:
        return split_rows(training)
    positions = sorted({prompt_position(row.prompt) for row in held_out})
    if len(positions) < 2:
        raise TrainingError(
            f"The validation file has {len(positions)} distinct prompts. At least 2 are needed: one half chooses the "
            "best step, the other measures it."
        )
    # The hash's own middle keeps a prompt in its half in every version of the file; a lopsided file is cut at its
    # median.
    middle = 0.5 if positions[0] < 0.5 <= positions[-1] else positions[len(positions) // 2]
    splits: dict[Split, list[Row]] = {
        "train": [row for row in training if prompt_position(row.prompt) not in set(positions)],
        "validation": [row for row in held_out if prompt_position(row.prompt) < middle],
        "test": [row for row in held_out if prompt_position(row.prompt) >= middle],
    }
    if not splits["train"]:
        raise TrainingError(
            "Every prompt of the training file is in the validation file too: none is left to train on."
        )
    return splits


def sample(rows: list[Row], count: int) -> list[Row]:
    """The ``count`` first rows by hash: a random sample, and the same in every job on these rows."""
    return sorted(rows, key=lambda row: (prompt_position(row.prompt), row.line))[:count]


def _read(path: Path) -> list[Row]:
    with path.open("rb") as file:
        return list(all_rows(file))
