"""Fine-tuning jobs that begin from an expert."""

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused, reinforcement, upload
from sqlalchemy import Engine, select
from suites import METHOD

from zhub.database.sessions import system_session
from zhub.manifest import ROUTING_FILE, Z_FILE
from zhub.models import Job

OpenClient = Callable[..., openai.OpenAI]
MakeKey = Callable[..., str]


def spec_of(engine: Engine, job_id: str) -> dict[str, Any]:
    with system_session(engine) as session:
        spec: dict[str, Any] = session.scalars(
            select(Job.spec).where(Job.id == uuid.UUID(job_id.removeprefix("ftjob-")))
        ).one()
        return spec


def test_a_job_begins_from_the_expert_that_it_names(
    train: Callable[..., Any], publish: Callable[..., str], system_engine: Engine
) -> None:
    name = publish()
    job = train(model=name)
    (start,) = spec_of(system_engine, job.id)["starts"]
    assert (job.model, start["name"], start["z_sha256"], start["routing_sha256"]) == (name, name, Z_FILE, ROUTING_FILE)


def test_a_warm_start_chooses_among_the_newest_versions_that_are_not_the_base(
    train: Callable[..., Any], publish: Callable[..., str], system_engine: Engine
) -> None:
    publish("a")
    names = [publish("a"), publish("b", best_step=0, parent_digest="d")]
    publish("the-base", best_step=0)
    publish("a-lora", hyperparameters={"adapter": "lora"})
    job = train(method=reinforcement(hyperparameters={"warm_start": "nearest"}))
    assert [start["name"] for start in spec_of(system_engine, job.id)["starts"]] == names[::-1]
    assert spec_of(system_engine, train().id)["starts"] == []


def test_nobody_begins_from_the_experts_of_others(
    open_client: OpenClient,
    make_key: MakeKey,
    publish: Callable[..., str],
    check_files: Callable[[], None],
    system_engine: Engine,
) -> None:
    name = publish()
    stranger = open_client(make_key("globex"))
    file_id = upload(stranger).id
    check_files()
    nearest: Any = reinforcement(hyperparameters={"warm_start": "nearest"})
    create = partial(stranger.fine_tuning.jobs.create, training_file=file_id)
    assert refused(lambda: create(model=name, method=METHOD)).status_code == 404
    assert spec_of(system_engine, create(model="tiny", method=nearest).id)["starts"] == []


@pytest.mark.parametrize(
    ("hyperparameters", "published"),
    [
        ({"adapter": "lora"}, {}),
        ({"parameterisation": "sigmoid"}, {}),
        ({"warm_start": "nearest"}, {}),
        ({}, {"hyperparameters": {"adapter": "lora"}}),
        ({}, {"basis_fingerprint": "an earlier one"}),
    ],
)
def test_an_expert_that_a_job_cannot_begin_from_is_refused(
    train: Callable[..., Any], publish: Callable[..., str], hyperparameters: Any, published: Any
) -> None:
    name = publish(**published)
    error = refused(lambda: train(model=name, method=reinforcement(hyperparameters=hyperparameters)))
    assert (error.status_code, error.param) == (400, "model") and "base model" in error.message
