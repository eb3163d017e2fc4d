"""Aliases of releases: the mechanism of experts' aliases, and a share of the requests for a second version."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import refused_with
from releasing import findings
from sqlalchemy import Engine, text

from zhub.database.sessions import system_session
from zhub.registry.resolve import ResolvedModel, resolve
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
Publish = Callable[..., str]
PATH = "/releases/main.support/aliases/prod"


@pytest.fixture
def versions(ask: Ask, publish_version: Publish) -> list[str]:
    """Three versions of the release ``support``."""
    pinned = publish_version()
    body = {"name": "support", "experts": [{"model": pinned}]}
    return [ask("post", "/releases", body | {"strategy": kind})["id"] for kind in ("centroid", "prompt", "mixture")]


@pytest.fixture
def resolved(system_engine: Engine, caller: Caller) -> Callable[..., ResolvedModel]:
    def get(model: str, **options: Any) -> ResolvedModel:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE base_models SET is_default = true WHERE name = 'tiny'"))
            return resolve(session, caller, model, [], **options)

    return get


def answered_by(resolved: Callable[..., ResolvedModel], requester: str, model: str = "main.support@prod") -> str:
    release = resolved(model, requester=requester).release
    assert release is not None
    return release.name


def test_a_release_is_promoted_and_rolled_back_as_one(
    ask: Ask, versions: list[str], resolved: Callable[..., ResolvedModel], system_engine: Engine
) -> None:
    first, second, _ = versions
    ask("put", PATH, {"version": first})
    ask("put", PATH, {"version": second, "reason": "better", "expected": first})
    assert answered_by(resolved, "x") == second
    ask("put", PATH, {"version": first, "reason": "back"})
    assert answered_by(resolved, "x") == first
    moves = [(move["from"], move["to"], move["reason"]) for move in ask("get", PATH)["moves"]]
    assert moves == [(second, first, "back"), (first, second, "better"), (None, first, None)]
    assert ask("get", f"/releases/{first}")["aliases"] == ["prod"]
    assert findings(system_engine) == []


def test_an_alias_of_a_release_moves_only_from_where_it_is_expected(ask: Ask, versions: list[str]) -> None:
    first, second, _ = versions
    ask("put", PATH, {"version": first, "expected": None})
    with pytest.raises(openai.ConflictError, match="points to another version than expected"):
        ask("put", PATH, {"version": second, "expected": second})
    with pytest.raises(openai.ConflictError, match="points to another version than expected"):
        ask("put", PATH, {"version": second, "share": 0.5, "expected": None})
    assert ask("get", PATH)["version"] == first


def test_an_alias_points_to_versions_of_its_own_release_alone(
    ask: Ask, versions: list[str], publish_version: Publish
) -> None:
    body = {"name": "other", "strategy": "centroid", "experts": [{"model": publish_version("winter")}]}
    other = ask("post", "/releases", body)["id"]
    refused_with(400, "no version of 'main.support'", ask, "put", PATH, {"version": other})
    refused_with(404, r"main\.summer@v1", ask, "put", PATH, {"version": "main.summer@v1"})


def test_a_canary_gets_its_share_and_each_user_always_the_same_version(
    ask: Ask, versions: list[str], resolved: Callable[..., ResolvedModel]
) -> None:
    first, second, _ = versions
    ask("put", PATH, {"version": first})
    assert ask("put", PATH, {"version": second, "share": 0.25})["canary"] == {"version": second, "share": 0.25}
    users = [f"user-{number}" for number in range(200)]
    quarter = {user for user in users if answered_by(resolved, user) == second}
    assert 25 <= len(quarter) <= 75
    assert {user for user in users if answered_by(resolved, user) == second} == quarter
    ask("put", PATH, {"version": second, "share": 0.5})
    half = {user for user in users if answered_by(resolved, user) == second}
    assert quarter < half and 70 <= len(half) <= 130


def test_who_does_not_ask_for_an_answer_sees_what_the_alias_points_to(
    ask: Ask, versions: list[str], resolved: Callable[..., ResolvedModel]
) -> None:
    first, second, _ = versions
    ask("put", PATH, {"version": first})
    ask("put", PATH, {"version": second, "share": 0.99})
    release = resolved("main.support@prod").release
    assert release is not None and release.name == first


@pytest.mark.parametrize("ended_by", [0, 1], ids=["rolled back", "promoted"])
def test_a_move_ends_the_canary_and_its_history_says_so(
    ask: Ask, versions: list[str], system_engine: Engine, ended_by: int
) -> None:
    first, second, _ = versions
    ask("put", PATH, {"version": first})
    ask("put", PATH, {"version": second, "share": 0.1, "reason": "try"})
    assert ask("put", PATH, {"version": versions[ended_by]})["canary"] is None
    moves = [(move["from"], move["to"], move["canary"]) for move in ask("get", PATH)["moves"]]
    canary = {"version": second, "share": 0.1}
    assert moves == [(first, versions[ended_by], None), (first, first, canary), (None, first, None)]
    assert findings(system_engine) == []


def test_a_canary_needs_another_version_beside_it(ask: Ask, versions: list[str]) -> None:
    first, second, _ = versions
    refused_with(404, "has no alias 'prod'", ask, "put", PATH, {"version": second, "share": 0.5})
    ask("put", PATH, {"version": first})
    refused_with(409, "no other version to share", ask, "put", PATH, {"version": first, "share": 0.5})
    refused_with(400, "share", ask, "put", PATH, {"version": second, "share": 1.5})


def test_what_an_alias_sends_requests_to_is_not_deleted(ask: Ask, versions: list[str]) -> None:
    first, second, third = versions
    ask("put", PATH, {"version": first})
    ask("put", PATH, {"version": second, "share": 0.5})
    for needed in (first, second):
        refused_with(409, "'@prod' sends requests to", ask, "delete", f"/releases/{needed}")
    assert ask("delete", f"/releases/{third}")["deleted"]


def test_a_removed_alias_answers_nothing_and_keeps_its_moves(ask: Ask, versions: list[str]) -> None:
    ask("put", PATH, {"version": versions[0]})
    assert [alias["id"] for alias in ask("get", "/aliases")["data"]] == ["main.support@prod"]
    assert ask("delete", PATH)["object"] == "release.alias"
    with pytest.raises(openai.NotFoundError):
        ask("get", "/releases/main.support@prod")
    alias = ask("get", PATH)
    assert (alias["version"], len(alias["moves"])) == (None, 2)


def test_auto_is_the_release_of_that_name_where_it_is_promoted(
    ask: Ask, publish_version: Publish, resolved: Callable[..., ResolvedModel]
) -> None:
    pinned = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": pinned})
    made = ask("post", "/releases", {"name": "auto", "strategy": "prompt", "experts": [{"model": pinned}]})["id"]
    before = resolved("auto")
    assert (before.release, before.router, [part.record.name for part in before.candidates or []]) == (
        None,
        None,
        [pinned],
    )
    ask("put", "/releases/main.auto/aliases/prod", {"version": made})
    for model in ("auto", "auto:tiny"):
        after = resolved(model)
        assert after.release is not None
        assert (after.release.name, after.router) == (made, "prompt")


@pytest.mark.parametrize(
    "own,asked,experts,candidates,router",
    [
        ("centroid", None, None, [0.5, 1.0], "centroid"),
        ("prompt", None, None, [0.5, 1.0], "prompt"),
        ("mixture", None, [0.5, 0.5], None, None),
        ("centroid", "prompt", None, [0.5, 1.0], "prompt"),
        ("centroid", "mixture", [0.5, 0.5], None, None),
        ("mixture", "centroid", None, [1.0, 1.0], "centroid"),
        ("prompt", "base", [], None, None),
    ],
)
def test_a_release_answers_by_its_own_strategy_or_by_the_requests(
    ask: Ask,
    publish_version: Publish,
    resolved: Callable[..., ResolvedModel],
    own: str,
    asked: Any,
    experts: list[float] | None,
    candidates: list[float] | None,
    router: str | None,
) -> None:
    parts = [{"model": publish_version("a"), "weight": 0.5}, {"model": publish_version("b")}]
    made = ask("post", "/releases", {"name": "support", "strategy": own, "experts": parts})["id"]
    answer = resolved(made, strategy=asked)
    assert [part.weight for part in answer.experts] == (experts or [])
    chosen_from = None if answer.candidates is None else [part.weight for part in answer.candidates]
    assert chosen_from == candidates
    assert answer.router == router


def test_a_strategy_is_refused_where_nothing_is_to_be_chosen(
    client: openai.OpenAI, publish_version: Publish, resolved: Callable[..., ResolvedModel]
) -> None:
    version = publish_version()
    for model in (version, "tiny"):
        with pytest.raises(openai.BadRequestError, match="is for 'auto' and for releases"):
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "x"}], extra_body={"strategy": "prompt"}
            )
    assert resolved("auto", strategy="prompt").router == "prompt"


def test_a_release_of_another_project_is_not_there(
    versions: list[str], make_key: Callable[..., str], open_client: Callable[..., openai.OpenAI]
) -> None:
    theirs = open_client(make_key("globex", "main"))
    with pytest.raises(openai.NotFoundError, match=r"main\.support@v1"):
        theirs.models.retrieve(versions[0])
    with pytest.raises(openai.NotFoundError, match=r"main\.support@v1"):
        theirs.chat.completions.create(model=versions[0], messages=[{"role": "user", "content": "x"}])
