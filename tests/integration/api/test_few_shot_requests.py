"""Requests for a few-shot search: which experts are mixed, and which are refused by name."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from api_requests import refused, reinforcement
from sqlalchemy import Engine, select
from suites import GRADER

from zhub.database.sessions import system_session
from zhub.manifest import ROUTING_FILE, Z_FILE, FileEntry, MixedExpert, Mixture
from zhub.models import BaseModel, ExpertVersion, Job

Ask = Callable[..., Any]
Publish = Callable[..., str]
Train = Callable[..., Any]


def few_shot(*experts: str, **parts: Any) -> Any:
    return {"type": "few_shot", "few_shot": {"grader": GRADER, "experts": list(experts)} | parts}


def spec_of(engine: Engine, job_id: str) -> dict[str, Any]:
    with system_session(engine) as session:
        of_job = select(Job.spec).where(Job.id == uuid.UUID(job_id.removeprefix("ftjob-")))
        spec: dict[str, Any] = session.scalars(of_job).one()
        return spec


def test_a_search_mixes_the_versions_that_it_names(train: Train, publish: Publish, system_engine: Engine) -> None:
    names = [publish("summer"), publish("winter")]
    job = train(method=few_shot(*names), suffix="mixed")
    spec = spec_of(system_engine, job.id)
    assert [start["name"] for start in spec["starts"]] == names
    assert (spec["recipe"], spec["hyperparameters"]["population"], spec["expert"]) == ("few_shot", 32, "mixed")
    shown: Any = job.method
    assert shown.type == "few_shot" and shown.few_shot["experts"] == names


def test_a_release_stands_for_all_that_it_pins_and_each_version_is_mixed_once(
    train: Train, publish: Publish, ask: Ask, system_engine: Engine
) -> None:
    first, second = publish("summer"), publish("winter")
    experts = [{"model": first}, {"model": second}]
    ask("post", "/releases", {"name": "support", "strategy": "centroid", "experts": experts})
    job = train(method=few_shot("main.support@v1", first), suffix="mixed")
    assert [start["name"] for start in spec_of(system_engine, job.id)["starts"]] == [first, second]


def test_a_version_of_which_nobody_knows_its_prompts_is_mixed_too(
    train: Train, publish: Publish, system_engine: Engine
) -> None:
    name = publish(files=[FileEntry(name=Z_FILE, size_bytes=1, sha256="z")])
    job = train(method=few_shot(name), suffix="mixed")
    (start,) = spec_of(system_engine, job.id)["starts"]
    assert (start["name"], start["z_sha256"], start["routing_sha256"]) == (name, "z", None)
    assert ROUTING_FILE not in str(start)


@pytest.mark.parametrize(
    ("published", "words"),
    [({"hyperparameters": {"adapter": "lora"}}, "adapter 'lora'"), ({"basis_fingerprint": "x"}, "an earlier basis")],
)
def test_an_expert_that_cannot_be_mixed_into_one_is_refused_by_name(
    train: Train, publish: Publish, published: Any, words: str
) -> None:
    fits, other = publish("summer"), publish("winter", **published)
    error = refused(lambda: train(method=few_shot(fits, other)))
    assert (error.status_code, error.param) == (400, "method.few_shot.experts")
    assert other in error.message and fits not in error.message and words in error.message


def test_experts_of_two_bases_are_refused_by_name(
    unfrozen: None, train: Train, publish: Publish, system_engine: Engine
) -> None:
    here, there = publish("summer"), publish("winter")
    with system_session(system_engine) as session:
        other = BaseModel(name="other", status="ready", source={}, basis_fingerprint="x", basis_key_prefix="k")
        session.add(other)
        session.flush()
        version = session.scalars(select(ExpertVersion).order_by(ExpertVersion.id.desc()).limit(1)).one()
        version.base_model_id = other.id
    error = refused(lambda: train(method=few_shot(here, there)))
    assert error.param == "method.few_shot.experts" and f"'{there}' belongs to 'other'" in error.message


@pytest.mark.parametrize(
    ("method", "param"),
    [
        (few_shot(), "method.few_shot.experts"),
        (few_shot(experts="main.summer@v1"), "method.few_shot.experts"),
        (few_shot("main.summer@v1", grader=None), "method.few_shot.grader"),
        (few_shot("main.summer@v1", hyperparameters={"shots": 0}), "method.few_shot.hyperparameters.shots"),
        (few_shot("main.summer@v1", mixtures=1), "method.mixtures"),
    ],
)
def test_a_search_that_cannot_be_made_names_what_is_wrong(train: Train, method: Any, param: str) -> None:
    error = refused(lambda: train(method=method))
    assert (error.status_code, error.param) == (400, param)


def test_experts_that_are_not_there_are_not_found(train: Train) -> None:
    assert refused(lambda: train(method=few_shot("main.nobody@v1"))).status_code == 404


def test_other_methods_have_no_experts_to_mix(train: Train) -> None:
    error = refused(lambda: train(method=reinforcement(experts=["main.summer@v1"])))
    assert error.param == "method.experts"


def test_a_search_does_not_begin_from_an_expert(train: Train, publish: Publish) -> None:
    name = publish()
    error = refused(lambda: train(model=name, method=few_shot(name)))
    assert error.param == "model" and "'tiny'" in error.message


@pytest.mark.parametrize(
    "grader",
    [
        {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 1.0\n"},
        GRADER | {"operation": "ne"},
    ],
)
def test_a_gradient_needs_right_answers(train: Train, publish: Publish, grader: Any) -> None:
    method = few_shot(publish(), grader=grader, hyperparameters={"start": "gradient"})
    error = refused(lambda: train(method=method))
    assert error.param == "method.few_shot.hyperparameters.start" and "uniform" in error.message


def test_what_a_search_needs_is_not_deleted_before_it_ends(train: Train, publish: Publish, ask: Ask) -> None:
    name = publish()
    train(method=few_shot(name), suffix="mixed")
    assert refused(lambda: ask("delete", f"/experts/{name}")).status_code == 409


def test_a_version_shows_what_was_mixed_into_it(publish: Publish, ask: Ask) -> None:
    mixed = [MixedExpert(name="main.summer@v1", digest="d", weights={"all": 0.25})]
    name = publish("mixed", recipe="few_shot", mixture=Mixture(granularity="global", experts=mixed, shots=[3, 1]))
    shown = ask("get", f"/experts/{name}")["manifest"]["mixture"]
    assert shown["experts"] == [{"name": "main.summer@v1", "digest": "d", "weights": {"all": 0.25}}]
    assert shown["shots"] == [3, 1]
