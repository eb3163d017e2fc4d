"""Requests for a fine-tuning job: what is refused, under which name of a parameter, and what an estimate says."""

import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import ROWS, refused, reinforcement, upload
from sqlalchemy import Engine, func, select, text
from suites import GRADER, METHOD

from zhub.database.sessions import system_session
from zhub.models import Expert, Job
from zhub.training.hyperparameters import DEFAULT_STEPS

Client = openai.OpenAI
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "tiny",
    "input": [{"role": "user", "content": "Is this right? {{sample.output_text}}"}],
}
HYPERPARAMETERS = "method.reinforcement.hyperparameters"


@pytest.mark.parametrize(
    ("options", "status", "code", "param"),
    [
        ({"model": "gpt-5"}, 404, "model_not_found", None),
        ({"model": "tiny\0"}, 400, "invalid_request", "model"),
        ({"training_file": "file-" + "0" * 32}, 400, "file_not_found", "training_file"),
        ({"training_file": "sums.jsonl"}, 400, "file_not_found", "training_file"),
        ({"validation_file": "file-" + "0" * 32}, 400, "file_not_found", "validation_file"),
        ({"suffix": ""}, 400, "invalid_request", "suffix"),
        ({"suffix": "a" * 65}, 400, "invalid_request", "suffix"),
        ({"suffix": "!!!"}, 400, "invalid_request", "suffix"),
        ({"suffix": "a\0"}, 400, "invalid_request", "suffix"),
        ({"metadata": {"a": "\0"}}, 400, "invalid_request", None),
        ({"metadata": {"a": 1}}, 400, "invalid_request", "metadata.a"),
        ({"seed": 10**30}, 400, "invalid_request", "seed"),
        ({"seed": "soon"}, 400, "invalid_request", "seed"),
        ({"integrations": [{"type": "wandb"}]}, 400, "invalid_request", "integrations"),
        ({"method": {"type": "ppo"}}, 400, "invalid_request", "method.type"),
        ({"method": {"type": "dpo"}}, 400, "wrong_schema", "training_file"),
        (
            {"method": reinforcement(grader=JUDGE | {"model": "another"})},
            400,
            "invalid_grader",
            "method.reinforcement.grader.model",
        ),
        ({"method": {"type": "reinforcement"}}, 400, "invalid_request", "method.reinforcement.grader"),
        (
            {"method": reinforcement(grader={"type": "pyton"})},
            400,
            "invalid_grader",
            "method.reinforcement.grader.type",
        ),
        (
            {"method": reinforcement(grader=GRADER | {"reference": "{{item.solution}}"})},
            400,
            "invalid_grader",
            "method.reinforcement.grader.reference",
        ),
        (
            {"method": reinforcement(grader=GRADER | {"name": "\0"})},
            400,
            "invalid_request",
            "method.reinforcement.grader.name",
        ),
        ({"method": reinforcement(graders=[])}, 400, "invalid_request", "method.graders"),
        ({"method": reinforcement(hyperparameters=["n_epochs"])}, 400, "invalid_request", HYPERPARAMETERS),
        (
            {"method": reinforcement(hyperparameters={"lerning_rate": 0.1})},
            400,
            "unknown_hyperparameter",
            f"{HYPERPARAMETERS}.lerning_rate",
        ),
        (
            {"method": reinforcement(hyperparameters={"learning_rate": -1})},
            400,
            "invalid_request",
            f"{HYPERPARAMETERS}.learning_rate",
        ),
        (
            {"method": reinforcement(hyperparameters={"n_epochs": 1e308})},
            400,
            "invalid_request",
            f"{HYPERPARAMETERS}.n_epochs",
        ),
        ({"method": METHOD, "hyperparameters": {"n_epochs": 1}}, 400, "invalid_request", "hyperparameters"),
        ({"extra_body": {"priority": -1}}, 400, "invalid_request", "priority"),
        ({"extra_body": {"priority": 10}}, 400, "invalid_request", "priority"),
        ({"extra_body": {"priority": True}}, 400, "invalid_request", "priority"),
        ({"extra_body": {"trainig_file": "x"}}, 400, "unknown_parameter", "trainig_file"),
    ],
)
def test_a_request_that_cannot_be_met_names_what_is_wrong(
    train: Callable[..., Any], options: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    error = refused(lambda: train(**options))
    assert (error.status_code, error.code, error.param) == (status, code, param)


def test_a_misspelt_hyperparameter_is_answered_with_the_nearest_one(train: Callable[..., Any]) -> None:
    error = refused(lambda: train(method=reinforcement(hyperparameters={"lerning_rate": 0.1})))
    assert "Did you mean 'learning_rate'?" in error.message


def test_an_estimate_says_what_a_job_would_be_and_leaves_nothing_behind(
    client: Client, checked_file: str, system_engine: Engine
) -> None:
    body: dict[str, Any] = {"model": "tiny", "training_file": checked_file, "suffix": "new"}
    body |= {"method": reinforcement(hyperparameters={"data_parallel": 2})}
    answer: Any = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)
    assert (answer["expert"], answer["workers"], answer["shares_a_worker"]) == ("main.new", 2, False)
    assert answer["method"]["reinforcement"]["hyperparameters"]["n_steps"] == DEFAULT_STEPS
    assert answer["expected_seconds"] is None
    with system_session(system_engine) as session:
        assert session.scalar(select(func.count()).select_from(Expert)) == 0
    assert list(client.fine_tuning.jobs.list()) == []


def test_an_estimate_refuses_what_creating_the_job_would(client: Client, checked_file: str) -> None:
    body = {"model": "tiny", "training_file": checked_file, "method": reinforcement(hyperparameters={"n_stepz": 2})}
    error = refused(lambda: client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object))
    assert error.code == "unknown_hyperparameter"


@pytest.mark.parametrize("field", ["depends_on", "promotion"])
def test_an_estimate_refuses_the_dependency_or_gate_that_creating_the_job_would(
    client: Client, checked_file: str, field: str
) -> None:
    gate = {"alias": "v1", "suites": [{"file": checked_file, "grader": GRADER}]}
    body = {"model": "tiny", "training_file": checked_file, "method": METHOD}
    body[field] = {"depends_on": ["ftjob-" + "0" * 32], "promotion": gate}[field]
    error = refused(lambda: client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object))
    assert (error.status_code, error.param) == (400, "depends_on" if field == "depends_on" else "promotion.alias")


def test_a_small_job_may_share_a_worker_and_a_lora_may_not(train: Callable[..., Any], system_engine: Engine) -> None:
    train()
    train(method=reinforcement(hyperparameters={"adapter": "lora"}))
    with system_session(system_engine) as session:
        keys = list(session.scalars(select(Job.pack_key).where(Job.kind == "train").order_by(Job.id)))
    assert keys[0] is not None and keys[1:] == [None]


def test_a_request_that_is_refused_leaves_nothing_behind(train: Callable[..., Any], system_engine: Engine) -> None:
    refused(lambda: train(suffix="fresh", seed=10**30))
    refused(lambda: train(suffix="fresh", method=reinforcement(hyperparameters={"nope": 1})))
    with system_engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM experts")) == 0


def test_a_file_for_the_other_recipe_is_refused_with_a_line(client: Client, train: Callable[..., Any]) -> None:
    error = refused(lambda: train(method={"type": "supervised"}))
    assert (error.param, error.code) == ("training_file", "wrong_schema") and "line 1" in error.message


def test_a_file_that_failed_validation_brings_its_problems(
    client: Client, check_files: Callable[[], None], train: Callable[..., Any]
) -> None:
    file = upload(client, content=b"{}\n" * 3)
    check_files()
    error = refused(lambda: train(training_file=file.id))
    assert error.code == "invalid_dataset" and isinstance(error.body, dict)
    assert [problem["line"] for problem in error.body["errors"]] == [1, 2, 3]


def test_too_few_prompts_are_refused(
    client: Client, check_files: Callable[[], None], train: Callable[..., Any]
) -> None:
    file = upload(client, content=b"".join(ROWS.splitlines(keepends=True)[:9]))
    check_files()
    assert refused(lambda: train(training_file=file.id)).code == "dataset_too_small"


def test_a_base_model_whose_files_are_not_all_there_is_a_conflict_that_passes(
    make_base_model: Callable[..., uuid.UUID], train: Callable[..., Any]
) -> None:
    make_base_model("big", status="uploading")
    error = refused(lambda: train(model="big"))
    assert (error.status_code, error.code) == (409, "not_ready")


def test_a_base_model_that_was_refused_says_why(
    make_base_model: Callable[..., uuid.UUID], train: Callable[..., Any]
) -> None:
    make_base_model("odd", status="error", error="It has no linear layers.")
    error = refused(lambda: train(model="odd"))
    assert error.status_code == 409 and "It has no linear layers." in error.message
