"""Releases that are measured and gated as one model."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api_requests import refused_with
from promoting import advance
from sqlalchemy import Engine, select
from suites import GRADER, right_in, run

from zhub.database.sessions import system_session
from zhub.ids import parse_id
from zhub.manifest import ROUTING_FILE, Z_FILE, FileEntry
from zhub.models import Evaluation, Job, Promotion
from zhub.specs import EvaluateSpec
from zhub.storage.directory import DirectoryStore
from zhub_api.routes.evaluations import evaluation_objects
from zhub_api.routes.promotions import promotion_objects

Ask = Callable[..., Any]
Publish = Callable[..., str]
FILES = [FileEntry(name=name, size_bytes=1, sha256=name) for name in (Z_FILE, ROUTING_FILE)]


@pytest.fixture
def releases(ask: Ask, publish_version: Publish) -> list[str]:
    """Two versions of the release ``support``: a router, and a mixture."""
    pinned = [publish_version(name, files=FILES) for name in ("a", "b")]
    experts = [{"model": pinned[0], "weight": 0.5, "description": "sums"}, {"model": pinned[1]}]
    body = {"name": "support", "experts": experts}
    return [ask("post", "/releases", body | {"strategy": strategy})["id"] for strategy in ("prompt", "mixture")]


@pytest.fixture
def measure(ask: Ask, suite_file: str) -> Ask:
    """POST /v1/evaluations of the suite's file."""

    def post(model: str, **options: Any) -> Any:
        return ask("post", "/evaluations", {"model": model, "file": suite_file, "grader": GRADER} | options)

    return post


@pytest.fixture
def work(system_engine: Engine, store: DirectoryStore) -> Callable[..., None]:
    """Let gates and pretended workers do what there is to do; ``right`` of 40 rows by each strategy, 10 by the base."""

    def until_nothing_is_left(**right: int) -> None:
        def rewards(spec: EvaluateSpec) -> list[float]:
            if spec.release is None:
                return right_in(10)
            return right_in(right["mixture" if spec.release.candidates is None else "router"])

        for _ in range(10):
            advance(system_engine)
            if not run(system_engine, store, rewards):
                return
        raise AssertionError("there is no end to it")

    return until_nothing_is_left


@pytest.fixture
def promote_gated(ask: Ask, suite_file: str) -> Ask:
    def post(model: str, **options: Any) -> Any:
        suite = {"file": suite_file, "grader": GRADER}
        return ask("post", "/promotions", {"model": model, "suites": [suite]} | options)

    return post


def specs(engine: Engine) -> list[EvaluateSpec]:
    with system_session(engine) as session:
        jobs = session.scalars(select(Job).where(Job.kind == "evaluate").order_by(Job.id))
        return [EvaluateSpec.model_validate(job.spec) for job in jobs]


def promote(ask: Ask, version: str) -> None:
    ask("put", "/releases/main.support/aliases/prod", {"version": version})


def test_the_worker_gets_who_answers_by_digest(measure: Ask, releases: list[str], system_engine: Engine) -> None:
    measure(releases[0], compare_with=[releases[1]])
    router, base, mixture = specs(system_engine)
    assert router.release is not None and mixture.release is not None
    assert (base.release, base.z, router.z) == (None, None, None)
    assert (router.release.router, router.release.release) == ("prompt", releases[0])
    parts = [(part.name, part.weight, part.description) for part in router.release.candidates or []]
    assert parts == [("main.a@v1", 0.5, "sums"), ("main.b@v1", 1.0, "b")]
    assert [(part.name, part.weight) for part in mixture.release.experts] == [("main.a@v1", 0.5), ("main.b@v1", 0.5)]


def test_a_release_is_measured_once_and_is_not_its_base(
    measure: Ask, releases: list[str], work: Callable[..., None], ask: Ask
) -> None:
    first = measure(releases[0])
    assert measure(releases[0])["id"] == first["id"]
    work(router=30)
    found = ask("get", f"/evaluations/{first['id']}")
    assert (found["model"], found["results"]["mean"]) == (releases[0], 0.75)
    (base,) = found["others"]
    assert (base["model"], base["results"]["mean"], base["comparison"]["verdict"]) == ("tiny", 0.25, "better")
    assert measure("tiny")["id"] == base["id"]


def test_evaluations_of_a_release_are_found_by_its_name(
    measure: Ask, releases: list[str], ask: Ask, publish_version: Publish
) -> None:
    made = [measure(name)["id"] for name in releases]
    measure(publish_version("a", files=FILES))

    def found(model: str) -> list[str]:
        return [evaluation["id"] for evaluation in ask("get", f"/evaluations?model={model}")["data"]]

    assert found(releases[0]) == [made[0]]
    assert found("main.support") == made[::-1]
    assert [evaluation["model"] for evaluation in ask("get", "/evaluations?model=tiny")["data"]] == ["tiny"]


def test_figures_on_rows_that_a_pinned_expert_was_trained_on_are_told_as_flattering(
    measure: Ask, ask: Ask, publish_version: Publish
) -> None:
    name = publish_version("a", files=FILES)
    release = ask("post", "/releases", {"name": "one", "strategy": "mixture", "experts": [{"model": name}]})["id"]
    digest = measure(release)["suite"]["file"]["sha256"]
    other = publish_version("b", files=FILES, dataset_digest=digest)
    experts = [{"model": name}, {"model": other}]
    release = ask("post", "/releases", {"name": "two", "strategy": "mixture", "experts": experts})["id"]
    (warning,) = measure(release)["warnings"]
    assert warning.startswith(f"{other} was trained on this file")


def test_what_chooses_among_promoted_experts_is_not_measured(measure: Ask, ask: Ask, publish_version: Publish) -> None:
    version = publish_version("a", files=FILES)
    ask("put", "/experts/main.a/aliases/prod", {"version": version})
    refused_with(400, "no release version", measure, "auto:tiny")


def test_a_gate_promotes_a_release_that_is_better_than_the_one_before(
    promote_gated: Ask, releases: list[str], work: Callable[..., None], ask: Ask
) -> None:
    promote(ask, releases[0])
    made = promote_gated(releases[1], rule="better")
    assert (made["model"], made["status"]) == (releases[1], "waiting")
    work(router=15, mixture=35)
    found = ask("get", f"/promotions/{made['id']}")
    assert (found["promoted"], found["model"]) == (True, releases[1])
    alias = ask("get", "/releases/main.support/aliases/prod")
    assert (alias["version"], alias["moves"][0]["by"]) == (releases[1], made["id"])


def test_a_gate_keeps_a_release_that_is_worse_than_the_one_before(
    promote_gated: Ask, releases: list[str], work: Callable[..., None], ask: Ask
) -> None:
    promote(ask, releases[0])
    made = promote_gated(releases[1])
    work(router=35, mixture=15)
    found = ask("get", f"/promotions/{made['id']}")
    assert found["promoted"] is False
    assert f"is worse than {releases[0]}" in found["findings"][0]["sentences"][0]
    assert ask("get", "/releases/main.support/aliases/prod")["version"] == releases[0]


def test_what_is_measured_or_decided_about_is_not_deleted(
    measure: Ask, promote_gated: Ask, releases: list[str], work: Callable[..., None], ask: Ask
) -> None:
    router, mixture = releases
    measure(router)
    promote_gated(mixture)
    for name, what in ((router, "measures"), (mixture, "decides about")):
        refused_with(409, what, ask, "delete", f"/releases/{name}")
    work(router=30, mixture=5)
    ask("delete", f"/releases/{router}")
    refused_with(404, "deleted", measure, router)


def test_what_ends_while_it_is_read_is_told_with_its_results(
    measure: Ask, promote_gated: Ask, releases: list[str], work: Callable[..., None], system_engine: Engine
) -> None:
    evaluation_id = parse_id("evaluation", measure(releases[0])["id"])
    promotion_id = parse_id("promotion", promote_gated(releases[1])["id"])
    with ThreadPoolExecutor(1) as others, system_session(system_engine) as session:
        evaluation, promotion = session.get_one(Evaluation, evaluation_id), session.get_one(Promotion, promotion_id)
        others.submit(work, router=30, mixture=30).result()
        (measured,), (decided,) = evaluation_objects(session, [evaluation]), promotion_objects(session, [promotion])
    assert (measured["status"], measured["results"]["mean"]) == ("succeeded", 0.75)
    assert (decided["status"], decided["promoted"]) == ("succeeded", True)
