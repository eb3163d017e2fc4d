"""The command that trains a classifier."""

from collections.abc import Callable
from typing import Any

import api_examples
import pytest

Run = Callable[..., int]
EXPERTS = ("default.sorting@v1", "default.sums@v2")
DATASET = {
    "id": "clsd-1",
    "object": "classification_dataset",
    "created_at": 1_700_000_000,
    "finished_at": None,
    "status": "queued",
    "error": None,
    "name": "which",
    "labels": [{"label": name[8:-3], "model": name, "rows": None} for name in EXPERTS],
    "file": None,
}
MADE = DATASET | {
    "status": "succeeded",
    "file": "file-7",
    "labels": [label | {"rows": 200} for label in DATASET["labels"]],  # type: ignore[attr-defined]
}
JOBS, DATASETS = "/v1/fine_tuning/jobs", "/v1/classification_datasets"


@pytest.fixture
def api(api: Any) -> Any:
    api.add("POST", DATASETS, DATASET)
    api.add("GET", f"{DATASETS}/clsd-1", MADE)
    api.add("POST", JOBS, api_examples.JOB | {"status": "queued", "fine_tuned_model": None})
    return api


def test_rows_are_made_of_the_experts_and_an_ordinary_training_gets_them(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("releases", "classifier", "which", *EXPERTS, "--rows", "50", "--set", "n_steps=7") == 0
    assert api.bodies("POST", DATASETS) == [
        {"name": "which", "experts": list(EXPERTS), "others": [], "rows_per_label": 50}
    ]
    (body,) = api.bodies("POST", JOBS)
    assert (body["model"], body["training_file"], body["suffix"]) == ("zhub-tiny", "file-7", "which")
    settings = body["method"]["supervised"]["hyperparameters"]
    assert (settings["n_steps"], settings["step_kl"], settings["general_questions"]) == (7, 1.0, 0)
    told = capsys.readouterr().err
    assert "file-7 has 200 of default.sorting@v1, 200 of default.sums@v2" in told
    assert "no prompts that are for none of them" in told


def test_prompts_of_other_files_are_for_none_of_the_experts(
    zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--other", "file-3", "--other", "file-4", "--seed", "2", "--base", "default.which@v1")
    assert zhub("releases", "classifier", "which", *EXPERTS, *arguments) == 0
    (body,) = api.bodies("POST", DATASETS)
    assert (body["others"], body["seed"]) == (["file-3", "file-4"], 2)
    assert api.bodies("POST", JOBS)[0]["model"] == "default.which@v1"
    assert "no prompts" not in capsys.readouterr().err


def test_rows_that_cannot_be_made_begin_no_training(zhub: Run, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "training_failed", "message": "No prompt is left that is sums's alone."}
    api.add("GET", f"{DATASETS}/clsd-1", DATASET | {"status": "failed", "error": error})
    assert zhub("releases", "classifier", "which", *EXPERTS) == 1
    assert "No prompt is left" in capsys.readouterr().err
    assert api.bodies("POST", JOBS) == []
