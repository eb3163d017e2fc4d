"""Protected aliases: a move is a request, a second person approves it, and going back needs nobody."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from api_requests import refused_with
from promoting import advance, points_to, z
from sqlalchemy import Engine, text
from suites import GRADER, right_in, run

from zhub.database.sessions import system_session
from zhub.errors import ConflictError
from zhub.queue import invariants
from zhub.registry import aliases, versions
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
PATH = "/experts/main.summer/aliases/prod"


@pytest.fixture
def other(open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]) -> Ask:
    """Send a request as somebody else of the same project."""
    client = open_client(make_key())

    def send(method: str, path: str, body: Any = None) -> Any:
        return getattr(client, method)(path, cast_to=object, **({"body": body} if body is not None else {}))

    return send


@pytest.fixture
def protected(ask: Ask, publish_version: Callable[..., str]) -> list[str]:
    """Three versions, of which ``@prod`` points to the first, and is protected then."""
    names = [publish_version() for _ in range(3)]
    ask("put", PATH, {"version": names[0]})
    ask("put", "/protected_aliases/prod", {})
    return names


def decide(ask: Ask, request: str, decision: str, **said: Any) -> Any:
    return ask("post", f"/alias_requests/{request}/decision", {"decision": decision, **said})


def test_a_move_of_a_protected_alias_waits_for_somebody_elses_approval(
    ask: Ask, other: Ask, protected: list[str], system_engine: Engine
) -> None:
    request = ask("put", PATH, {"version": protected[1], "reason": "better"})
    assert (request["object"], request["status"], request["expected"]) == ("alias.request", "open", protected[0])
    assert points_to(ask) == protected[0]
    refused_with(409, "somebody else approves it", decide, ask, request["id"], "approve")
    assert [one["id"] for one in other("get", "/alias_requests?status=open")["data"]] == [request["id"]]
    approved = decide(other, request["id"], "approve", reason="tried it")
    assert (approved["status"], approved["decided_because"]) == ("approved", "tried it")
    assert points_to(ask) == protected[1]
    move = ask("get", PATH)["moves"][0]
    assert move["by"] == request["person"] and f"better; approved by {approved['decided_by']}" == move["reason"]
    refused_with(409, "is approved", decide, other, request["id"], "reject")
    with system_session(system_engine) as session:
        assert not [finding for finding in invariants.examine(session) if "alias" in finding.rule]


def test_a_request_is_withdrawn_by_who_asked_and_rejected_by_others(ask: Ask, other: Ask, protected: list[str]) -> None:
    first = ask("put", PATH, {"version": protected[1]})["id"]
    refused_with(409, "asks for the same move already", ask, "put", PATH, {"version": protected[1]})
    refused_with(400, "who alone withdraws it", decide, other, first, "withdraw")
    assert decide(ask, first, "withdraw")["status"] == "withdrawn"
    second = ask("put", PATH, {"version": protected[1]})["id"]
    assert decide(other, second, "reject")["status"] == "rejected"
    assert points_to(ask) == protected[0]


def test_a_request_that_nobody_answers_expires(
    ask: Ask, other: Ask, protected: list[str], system_engine: Engine
) -> None:
    request = ask("put", PATH, {"version": protected[1]})["id"]
    with system_session(system_engine) as session:
        session.execute(text("UPDATE alias_requests SET expires_at = now()"))
    assert ask("get", f"/alias_requests/{request}")["status"] == "expired"
    assert ask("get", "/alias_requests?status=open")["data"] == []
    refused_with(409, "is expired", decide, other, request, "approve")
    ask("put", PATH, {"version": protected[1]})


def test_an_approval_moves_nothing_that_has_moved_since(ask: Ask, other: Ask, protected: list[str]) -> None:
    late, soon = (ask("put", PATH, {"version": name})["id"] for name in protected[1:])
    decide(other, soon, "approve")
    refused_with(409, f"to {protected[2]}: key-.* moved it at", decide, other, late, "approve")
    assert ask("get", f"/alias_requests/{late}")["status"] == "open"


def test_a_version_that_was_yanked_is_approved_no_more(ask: Ask, other: Ask, protected: list[str]) -> None:
    request = ask("put", PATH, {"version": protected[1]})["id"]
    ask("put", f"/experts/{protected[1]}/state", {"state": "yanked", "reason": "it leaks"})
    refused_with(409, "was yanked: it leaks", decide, other, request, "approve")


def test_nothing_gets_around_the_protection(ask: Ask, protected: list[str]) -> None:
    refused_with(409, "its removal needs a second person", ask, "delete", PATH)
    detach = {"state": "yanked", "reason": "x", "detach": True}
    refused_with(409, "its removal needs a second person", ask, "put", f"/experts/{protected[0]}/state", detach)
    refused_with(409, "second person", ask, "delete", f"/experts/{protected[0]}?detach=true")
    pins = {"name": "support", "strategy": "centroid", "experts": [{"model": protected[0]}]}
    release = ask("post", "/releases", pins)["id"]
    asked = ask("put", "/releases/main.support/aliases/prod", {"version": release, "share": 0.1})
    assert (asked["object"], asked["share"]) == ("alias.request", 0.1)
    assert points_to(ask) == protected[0]


def test_only_who_may_change_the_project_unprotects(
    ask: Ask, protected: list[str], open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str]
) -> None:
    developer = open_client(make_key(scopes=("models:read", "models:write")))
    refused_with(403, "project:write", developer.delete, "/protected_aliases/prod", cast_to=object)
    ask("delete", "/protected_aliases/prod")
    assert ask("put", PATH, {"version": protected[1]})["version"] == protected[1]
    refused_with(404, "protected alias", ask, "delete", "/protected_aliases/prod")


def test_a_gate_that_passes_asks_for_approval_and_says_so(
    ask: Ask, other: Ask, protected: list[str], publish_version: Ask, suite_file: str, system_engine: Engine,
    store: DirectoryStore,
) -> None:  # fmt: skip
    better = publish_version(**z("22"))
    gate = ask("post", "/promotions", {"model": better, "suites": [{"file": suite_file, "grader": GRADER}]})["id"]
    advance(system_engine)
    run(system_engine, store, lambda spec: right_in(38 if spec.z and spec.z.sha256.startswith("22") else 10))
    advance(system_engine)
    promotion = ask("get", f"/promotions/{gate}")
    assert (promotion["status"], promotion["promoted"]) == ("succeeded", False)
    (request,) = ask("get", "/alias_requests?status=open")["data"]
    assert (promotion["approval"], request["promotion"], points_to(ask)) == (request["id"], gate, protected[0])
    refused_with(409, "somebody else approves it", decide, ask, request["id"], "approve")
    decide(other, request["id"], "approve")
    assert points_to(ask) == better and ask("get", f"/promotions/{gate}")["promoted"] is True


def test_going_back_twice_goes_back_two_versions_and_needs_nobody(ask: Ask, publish_version: Ask) -> None:
    names = [publish_version() for _ in range(3)]
    for name in names:
        ask("put", PATH, {"version": name})
    ask("put", "/protected_aliases/prod", {})
    assert ask("post", f"{PATH}/rollback", {"reason": "slow"})["version"] == names[1]
    assert ask("get", PATH)["moves"][0]["reason"] == f"rolled back from {names[2]}: slow"
    assert ask("post", f"{PATH}/rollback", {})["version"] == names[0]
    refused_with(409, "has pointed to no earlier version", ask, "post", f"{PATH}/rollback", {})


def test_going_back_passes_over_what_answers_no_more(ask: Ask, publish_version: Ask) -> None:
    names = [publish_version() for _ in range(3)]
    for name in names:
        ask("put", PATH, {"version": name})
    ask("put", f"/experts/{names[1]}/state", {"state": "yanked", "reason": "it leaks"})
    assert ask("post", f"{PATH}/rollback", {})["version"] == names[0]


def test_an_alias_of_a_release_goes_back(ask: Ask, publish_version: Ask) -> None:
    names = [publish_version(name) for name in ("a", "b")]
    path = "/releases/main.support/aliases/prod"
    made = []
    for strategy in ("centroid", "mixture"):
        pins = {"name": "support", "strategy": strategy, "experts": [{"model": name} for name in names]}
        made.append(ask("post", "/releases", pins)["id"])
        ask("put", path, {"version": made[-1]})
    assert ask("post", f"{path}/rollback", {})["version"] == made[0]


def test_of_16_who_promote_at_once_one_wins_and_the_others_are_told_who(
    publish_version: Ask, system_engine: Engine, caller: Caller
) -> None:
    names = [publish_version() for _ in range(17)]
    with system_session(system_engine) as session:
        first = versions.get_version(session, caller.project_id, names[0])
        aliases.move(session, "prod", first, by="test")

    def move(number: int) -> str | None:
        try:
            with system_session(system_engine) as session:
                to = versions.get_version(session, caller.project_id, names[number])
                expected = aliases.Expected(first.version.id)
                aliases.move(session, "prod", to, by=f"promoter-{number}", expected=expected)
        except ConflictError as exc:
            return str(exc)
        return None

    with ThreadPoolExecutor(8) as pool:
        answers = dict(enumerate(pool.map(move, range(1, 17)), start=1))
    (winner,) = [number for number, answer in answers.items() if answer is None]
    lost = [answer for answer in answers.values() if answer is not None]
    assert len(lost) == 15
    assert all(f"to {names[winner]}: promoter-{winner} moved it at" in answer for answer in lost)
