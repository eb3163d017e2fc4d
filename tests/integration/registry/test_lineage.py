"""Lineage both ways, and two versions side by side."""

from collections.abc import Callable
from typing import Any

import pytest
from api_requests import refused_with
from sqlalchemy import Engine, select, text
from suites import GRADER, METHOD, N, right_in, run

from zhub.database.sessions import system_session
from zhub.models import ExpertVersion
from zhub.storage.directory import DirectoryStore

Ask = Callable[..., Any]
Publish = Callable[..., str]
MIXTURE: dict[str, Any] = {"granularity": "global", "shots": []}


@pytest.fixture
def digest_of(system_engine: Engine) -> Callable[[str], str]:
    def find(name: str) -> str:
        with system_session(system_engine) as session:
            number = int(name.rpartition("v")[2])
            return str(session.scalars(select(ExpertVersion.digest).where(ExpertVersion.version == number)).one())

    return find


def edges(lineage: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(edge["from"], edge["relation"], edge["to"]) for edge in lineage["edges"]}


@pytest.fixture
def family(publish_version: Publish, digest_of: Callable[[str], str]) -> list[str]:
    """Two versions; one that began from the first; one that mixes it with the second; and one that began from that."""
    first, second = publish_version(), publish_version()
    child = publish_version(parent_digest=digest_of(first))
    mixed = [{"name": name, "digest": digest_of(name), "weights": {"all": 0.5}} for name in (child, second)]
    mixture = publish_version(mixture=MIXTURE | {"experts": mixed})
    return [first, second, child, mixture, publish_version(parent_digest=digest_of(mixture))]


def test_lineage_leads_to_all_that_a_version_comes_from_and_to_all_that_came_of_it(ask: Ask, family: list[str]) -> None:
    first, second, child, mixture, last = family
    walked = ask("get", f"/lineage/{child}")
    family_edges = {edge for edge in edges(walked) if edge[0] in family}
    assert family_edges == {
        (first, "is the start of", child),
        (child, "was mixed into", mixture),
        (mixture, "is the start of", last),
    }
    # From the mixture, the second version is an origin too.
    assert (second, "was mixed into", mixture) in edges(ask("get", f"/lineage/{mixture}"))
    # Siblings are no lineage: nothing of them went into it.
    assert second not in {node["id"] for node in walked["nodes"]}


def test_lineage_has_the_job_and_the_attempt_and_what_uses_the_version(
    ask: Ask, publish_version: Publish, suite_file: str
) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    pins = {"name": "support", "strategy": "centroid", "experts": [{"model": name}]}
    release = ask("post", "/releases", pins)["id"]
    ask("put", "/releases/main.support/aliases/prod", {"version": release})
    evaluation = ask("post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})["id"]
    gate = ask("post", "/promotions", {"model": name, "suites": [{"file": suite_file, "grader": GRADER}]})["id"]
    training = {"model": name, "method": METHOD, "suffix": "other"}
    body = {"name": "weekly", "dataset": "suite", "training": training, "on_new_data": True}
    schedule = ask("post", "/schedules", body)["id"]
    walked = ask("get", f"/lineage/{name}")
    job = ask("get", f"/experts/{name}")["job"]
    assert edges(walked) == {
        (job, "ran as", f"{job}/attempts/1"),
        (f"{job}/attempts/1", "published", name),
        (name, "named by", "main.summer@prod"),
        (name, "pinned by", release),
        (release, "named by", "main.support@prod"),
        (name, "measured by", evaluation),
        (name, "decided by", gate),
        (name, "is the start of", schedule),
    }
    assert walked["truncated"] is False


def test_lineage_of_a_file_has_what_came_of_it(
    ask: Ask, publish_version: Publish, suite_file: str, system_engine: Engine
) -> None:
    name, _ = publish_version(), publish_version()
    with system_session(system_engine) as session:
        session.execute(
            text(
                "UPDATE jobs SET dataset_version_id = (SELECT id FROM dataset_versions) "
                "WHERE id = (SELECT job_id FROM expert_versions WHERE version = 1)"
            )
        )
    job = ask("get", f"/experts/{name}")["job"]
    assert edges(ask("get", f"/lineage/{suite_file}")) == {
        (suite_file, "was trained on by", job),
        (job, "ran as", f"{job}/attempts/1"),
        (f"{job}/attempts/1", "published", name),
    }
    file = next(node for node in ask("get", f"/lineage/{name}")["nodes"] if node["kind"] == "file")
    assert (file["id"], file["name"], file["state"]) == (suite_file, "suite.jsonl v1", "processed")


def test_a_deleted_version_keeps_its_lineage(ask: Ask, family: list[str]) -> None:
    first, _, child, mixture, last = family
    ask("delete", f"/experts/{child}")
    walked = ask("get", f"/lineage/{child}")
    assert {node["id"]: node["state"] for node in walked["nodes"]}[child] == "deleted"
    assert (first, "is the start of", child) in edges(walked) and (mixture, "is the start of", last) in edges(walked)
    refused_with(404, "No such model", ask, "get", "/lineage/main.summer@v99")


def test_lineage_shows_nothing_of_other_projects(
    ask: Ask,
    family: list[str],
    open_client: Callable[..., Any],
    make_key: Callable[..., str],
) -> None:
    for other in (("globex", "main"), ("acme", "other")):
        stranger = open_client(make_key(*other))
        refused_with(404, "No such", stranger.get, f"/lineage/{family[0]}", cast_to=object)


def test_two_versions_are_compared_on_what_both_were_measured_on(
    ask: Ask, publish_version: Publish, suite_file: str, system_engine: Engine, store: DirectoryStore
) -> None:
    old = publish_version(files=[{"name": "z.safetensors", "size_bytes": 1, "sha256": "11" * 32}])
    new = publish_version(
        files=[{"name": "z.safetensors", "size_bytes": 1, "sha256": "22" * 32}], hyperparameters={"n_steps": 2}
    )
    body = {"model": new, "file": suite_file, "grader": GRADER, "compare_with": [old]}
    ask("post", "/evaluations", body)
    rewards = {"11": right_in(10), "22": [0.0, *right_in(30)[1:]]}
    run(system_engine, store, lambda spec: rewards[spec.z.sha256[:2]] if spec.z else right_in(0))
    compared = ask("get", f"/experts/{new}/comparisons/{old}")
    assert {"what": "hyperparameters.n_steps", "model": 2, "against": 1} in compared["configuration"]
    (suite,) = compared["suites"]
    # Of 40 rows the old one is right in the first 10, the new one in 30 but the first.
    assert (suite["better"], suite["better_rows"]) == (20, list(range(10, 30)))
    assert (suite["worse"], suite["worse_rows"]) == (1, [0])
    assert suite["comparison"]["difference"] == pytest.approx((29 - 10) / N)
    assert suite["comparison"]["verdict"] == "better" and new in suite["comparison"]["sentence"]
    assert "did not measure how much" in compared["z_missing"] and compared["z"] is None
    back = ask("get", f"/experts/{old}/comparisons/{new}")["suites"][0]
    assert (back["better_rows"], back["worse"]) == ([0], 20)
