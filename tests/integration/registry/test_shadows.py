"""Shadows of releases: which requests they get, what is counted, and when their trial ends."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from api_requests import refused_with
from sqlalchemy import Engine

from zhub.database.sessions import system_session
from zhub.ids import parse_id
from zhub.registry import releases, shadows
from zhub.registry.resolve import ResolvedModel, resolve
from zhub.registry.shadows import Outcome, Side
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
Publish = Callable[..., str]
ALIAS = "/releases/main.support/aliases/prod"
SHADOW = f"{ALIAS}/shadow"


@pytest.fixture
def versions(ask: Ask, publish_version: Publish) -> list[str]:
    """Three versions of the release ``support``, of which ``@prod`` points to the first."""
    pinned = publish_version()
    body = {"name": "support", "experts": [{"model": pinned}]}
    made = [ask("post", "/releases", body | {"strategy": kind})["id"] for kind in ("centroid", "prompt", "mixture")]
    ask("put", ALIAS, {"version": made[0]})
    return made


@pytest.fixture
def drawn(system_engine: Engine, caller: Caller) -> Callable[..., str | None]:
    """The shadow that gets a request, if one does."""

    def get(request_id: str, alias: str = "main.support@prod") -> str | None:
        with system_session(system_engine) as session:
            live = releases.get(session, caller.project_id, alias)
            found = shadows.drawn(session, caller.project_id, alias, live, request_id)
            return None if found is None else found[1].name

    return get


def test_a_shadow_gets_all_requests_or_its_share_of_them(
    ask: Ask, versions: list[str], drawn: Callable[..., str | None]
) -> None:
    assert drawn("r1") is None
    made = ask("put", SHADOW, {"version": versions[1]})
    assert (made["live"], made["shadow"], made["share"], made["ended_at"]) == (*versions[:2], 1.0, None)
    assert {drawn(f"r{i}") for i in range(50)} == {versions[1]}
    ask("put", SHADOW, {"version": versions[2], "share": 0.2})
    got = [drawn(f"r{i}") for i in range(400)]
    assert set(got) == {None, versions[2]}
    assert 40 < 400 - got.count(None) < 130
    assert [drawn(f"r{i}") for i in range(400)] == got


@pytest.mark.parametrize("ended_by", ["move", "removal", "end", "another"])
def test_a_trial_ends_and_its_counts_stay(
    ask: Ask, versions: list[str], drawn: Callable[..., str | None], ended_by: str
) -> None:
    ask("put", SHADOW, {"version": versions[1]})
    if ended_by == "move":
        ask("put", ALIAS, {"version": versions[2]})
    elif ended_by == "removal":
        ask("delete", ALIAS)
    elif ended_by == "end":
        ask("delete", SHADOW)
    else:
        ask("put", SHADOW, {"version": versions[2]})
    trials = ask("get", f"{ALIAS}/shadows")["data"]
    (ended,) = [trial for trial in trials if trial["shadow"] == versions[1]]
    assert ended["ended_at"] is not None
    if ended_by != "removal":
        assert drawn("r1") == (versions[2] if ended_by == "another" else None)


def test_a_canary_beside_the_alias_leaves_the_shadow(
    ask: Ask, versions: list[str], drawn: Callable[..., str | None]
) -> None:
    ask("put", SHADOW, {"version": versions[1]})
    ask("put", ALIAS, {"version": versions[2], "share": 0.1})
    assert drawn("r1") == versions[1]


def test_what_the_shadow_did_is_added_up(ask: Ask, versions: list[str], system_engine: Engine) -> None:
    trial_id: uuid.UUID = parse_id("shadow", ask("put", SHADOW, {"version": versions[1]})["id"])
    greedy = Outcome(Side(10, 1.0), Side(12, 2.0), same_experts=True, alike=True)
    drawn_at_random = Outcome(Side(5, 0.5), Side(5, 0.5), same_experts=False, alike=None)
    with system_session(system_engine) as session:
        shadows.record(session, trial_id, [greedy, drawn_at_random], failed=1, left_out=0)
        shadows.record(session, trial_id, [Outcome(Side(1, 0.1), Side(2, 0.2), True, False)], failed=0, left_out=3)
        shadows.record(session, trial_id, [], failed=0, left_out=0)
    found = ask("get", SHADOW)
    counts = ("answered", "failed", "left_out", "same_experts", "comparable", "alike")
    assert [found[name] for name in counts] == [3, 1, 3, 2, 2, 1]
    assert found["tokens"] == {"live": 16, "shadow": 19}
    assert found["seconds"] == {"live": pytest.approx(1.6), "shadow": pytest.approx(2.7)}


def test_a_shadow_needs_another_version_of_the_release_beside_it(
    ask: Ask, versions: list[str], publish_version: Publish
) -> None:
    refused_with(409, "already", ask, "put", SHADOW, {"version": versions[0]})
    other = {"name": "other", "strategy": "mixture", "experts": [{"model": publish_version()}]}
    refused_with(400, "no version of", ask, "put", SHADOW, {"version": ask("post", "/releases", other)["id"]})
    refused_with(400, "share", ask, "put", SHADOW, {"version": versions[1], "share": 1.5})
    refused_with(404, "No version has answered", ask, "get", SHADOW)
    ask("delete", ALIAS)
    refused_with(404, "alias", ask, "put", SHADOW, {"version": versions[1]})


def test_a_shadow_is_not_deleted_while_it_answers(ask: Ask, versions: list[str]) -> None:
    ask("put", SHADOW, {"version": versions[1]})
    refused_with(409, "shadow", ask, "delete", f"/releases/{versions[1]}")
    ask("delete", SHADOW)
    ask("delete", f"/releases/{versions[1]}")
    assert ask("get", SHADOW)["shadow"] == versions[1]  # what was counted stays


@pytest.fixture
def resolved(system_engine: Engine, caller: Caller) -> Callable[..., ResolvedModel]:
    def get(model: str, **options: Any) -> ResolvedModel:
        with system_session(system_engine) as session:
            return resolve(session, caller, model, [], **options)

    return get


def test_only_what_an_alias_answers_as_it_says_is_tried(
    ask: Ask, versions: list[str], resolved: Callable[..., ResolvedModel]
) -> None:
    assert resolved("main.support@prod").alias == "main.support@prod"
    assert resolved(versions[0]).alias is None
    assert resolved("main.support@prod", strategy="base").alias is None
    pinned = ask("get", f"/releases/{versions[0]}")["experts"][0]["model"]
    auto = ask("post", "/releases", {"name": "auto", "strategy": "mixture", "experts": [{"model": pinned}]})["id"]
    ask("put", "/releases/main.auto/aliases/prod", {"version": auto})
    assert resolved("auto:tiny").alias == "main.auto@prod"
