"""A training may be requested while its base is decomposed: it waits for the base where other jobs wait."""

import uuid
from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import reinforcement
from promoting import publish_job
from sqlalchemy import Engine, text
from suites import GRADER, METHOD

from zhub.database.sessions import system_session
from zhub.kinds import table
from zhub.kinds.redrive import process_redrives
from zhub.models import Job
from zhub.queue import jobs
from zhub.queue.dependencies import release_dependents
from zhub.queue.desired import apply_requested_changes
from zhub.specs import TrainSpec
from zhub.training import bases
from zhub.training.packing import pack_key

Ask = Callable[..., Any]
SET_READY = """
UPDATE base_models SET status = 'ready', weights_fingerprint = 'w', basis_fingerprint = 'b', basis_key_prefix = 'p'
 WHERE name = 'big'
"""
SET_SERVE_ONLY = SET_READY.replace(
    "WHERE", """, details = '{"limitations": [{"name": "serve_only", "reason": "no gradient"}]}' WHERE"""
)
SET_FAILED = "UPDATE base_models SET status = 'error', error = 'It has no linear layers.' WHERE name = 'big'"


@pytest.fixture
def train(ask: Ask, suite_file: str, make_base_model: Callable[..., uuid.UUID]) -> Callable[..., Any]:
    """Request a training on a base that is being decomposed."""
    make_base_model("big", status="decomposing")

    def create(**options: Any) -> Any:
        body = {"model": "big", "training_file": suite_file, "suffix": "summer", "method": METHOD}
        return ask("post", "/fine_tuning/jobs", body | options)

    return create


def change(engine: Engine, statement: str) -> None:
    with system_session(engine) as session:
        session.execute(text(statement))


def advance(engine: Engine) -> None:
    """What the leader does in a pass, in its order."""
    with system_session(engine) as session:
        apply_requested_changes(session)
        process_redrives(session)
        bases.follow_decompositions(session)
        release_dependents(session, table.names())


def row(engine: Engine, job: Any) -> Job:
    with system_session(engine) as session:
        found = jobs.get_job(session, uuid.UUID(job["id"].removeprefix("ftjob-")))
        session.expunge(found)
        return found


def test_a_training_waits_for_its_base_and_says_so(train: Ask, ask: Ask, system_engine: Engine) -> None:
    job = train()
    assert job["status"] == "queued"
    advance(system_engine)
    assert row(system_engine, job).state == "waiting"
    reason = ask("get", f"/fine_tuning/jobs/{job['id']}/queue")["reason"]
    assert reason == "It waits for the base model 'big' to be decomposed."
    (created,) = ask("get", f"/fine_tuning/jobs/{job['id']}/events")["data"]
    assert created["message"].endswith("It waits for the base model 'big' to be decomposed.")


def test_a_training_gets_the_basis_of_its_base_and_is_queued(train: Ask, system_engine: Engine) -> None:
    job = train()
    change(system_engine, SET_READY)
    advance(system_engine)
    queued = row(system_engine, job)
    spec = TrainSpec.model_validate(queued.spec)
    assert queued.state == "queued" and spec.basis.model_dump() == {
        "weights_fingerprint": "w", "basis_fingerprint": "b", "key_prefix": "p"
    }  # fmt: skip
    assert queued.pack_key == pack_key(spec) == f"{spec.base.digest}/b"


def test_a_training_waits_for_its_base_and_for_the_jobs_that_it_needs(
    train: Ask, train_expert: Ask, ask: Ask, system_engine: Engine
) -> None:
    needed = train_expert()
    job = train(depends_on=[needed.id])
    reason = ask("get", f"/fine_tuning/jobs/{job['id']}/queue")["reason"]
    assert reason == f"It waits for {needed.id} to succeed, and for the base model 'big' to be decomposed."
    publish_job(system_engine, needed.id, "aa")
    advance(system_engine)
    assert row(system_engine, job).state == "waiting"
    change(system_engine, SET_READY)
    advance(system_engine)
    assert row(system_engine, job).state == "queued"


def test_a_training_whose_base_cannot_be_decomposed_is_cancelled_by_name(
    train: Ask, ask: Ask, system_engine: Engine
) -> None:
    job = train()
    change(system_engine, SET_FAILED)
    advance(system_engine)
    ended = ask("get", f"/fine_tuning/jobs/{job['id']}")
    assert (ended["status"], ended["error"]["code"]) == ("cancelled", "base_model_failed")
    assert "'big'" in ended["error"]["message"] and "It has no linear layers." in ended["error"]["message"]
    with pytest.raises(openai.ConflictError, match="'big' cannot be used: It has no linear layers."):
        train()


def test_a_training_whose_base_turns_out_to_serve_only_is_cancelled_with_the_reason(
    train: Ask, ask: Ask, system_engine: Engine
) -> None:
    job = train()
    change(system_engine, SET_SERVE_ONLY)
    advance(system_engine)
    ended = ask("get", f"/fine_tuning/jobs/{job['id']}")
    assert (ended["status"], ended["error"]["code"]) == ("cancelled", "base_model_failed")
    assert "'big', which serves only: no gradient" in ended["error"]["message"]


def test_a_training_on_a_base_that_serves_only_is_refused_at_once(train: Ask, system_engine: Engine) -> None:
    change(system_engine, SET_SERVE_ONLY)
    with pytest.raises(openai.BadRequestError, match="'big', which serves only: no gradient") as refused:
        train()
    assert (refused.value.param, refused.value.code) == ("model", "base_model_serves_only")


def test_another_limitation_of_a_base_refuses_no_training(train: Ask, system_engine: Engine) -> None:
    change(system_engine, SET_SERVE_ONLY.replace("serve_only", "no_batching"))
    assert train()["status"] == "queued"


def test_a_training_that_was_cancelled_with_its_base_waits_for_it_again(
    train: Ask, ask: Ask, system_engine: Engine
) -> None:
    job = train()
    change(system_engine, SET_FAILED)
    advance(system_engine)
    change(system_engine, "UPDATE base_models SET status = 'decomposing', error = NULL WHERE name = 'big'")
    ask("post", f"/fine_tuning/jobs/{job['id']}/redrive")
    advance(system_engine)
    assert row(system_engine, job).state == "waiting"
    change(system_engine, SET_READY)
    advance(system_engine)
    assert row(system_engine, job).state == "queued"


def test_a_training_that_waits_for_its_base_can_be_cancelled(train: Ask, ask: Ask, system_engine: Engine) -> None:
    job = train()
    ask("post", f"/fine_tuning/jobs/{job['id']}/cancel")
    change(system_engine, SET_READY)
    advance(system_engine)
    assert row(system_engine, job).state == "cancelled"


def test_a_request_is_checked_while_its_base_is_decomposed(train: Ask, ask: Ask, suite_file: str) -> None:
    with pytest.raises(openai.BadRequestError, match="Unknown hyperparameter 'n_stepz'"):
        train(method=reinforcement(hyperparameters={"n_stepz": 1}))
    body = {"model": "big", "training_file": suite_file, "method": METHOD}
    estimate = ask("post", "/fine_tuning/jobs/estimate", body)
    assert estimate["shares_a_worker"] is True


def test_a_training_on_an_undecomposed_base_may_have_a_gate(
    train: Ask, ask: Ask, suite_file: str, system_engine: Engine
) -> None:
    job = train(promotion={"suites": [{"file": suite_file, "grader": GRADER}]})
    assert ask("get", f"/promotions/{job['promotion']}")["status"] == "waiting"
    change(system_engine, SET_READY)
    advance(system_engine)
    assert row(system_engine, job).state == "queued"
