"""The life of a version: deprecated, yanked, restored, and deleted with what needed it detached."""

from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused_with
from fastapi import FastAPI
from promoting import advance, z
from scripted_serving import scripted
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError
from suites import GRADER, METHOD

from zhub.answering import ChosenExpert
from zhub.database.sessions import system_session
from zhub.generation import Ended, GenerationRequest, Started
from zhub.models import Job, Schedule
from zhub.process.config import Settings
from zhub.queue import invariants
from zhub.registry import versions
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]
Publish = Callable[..., str]
WHY = "It leaks names"


@pytest.fixture
def asked() -> list[bytes]:
    """What serving was asked."""
    return []


@pytest.fixture
def settings(settings: Settings, run_server: Callable[[FastAPI], str], asked: list[bytes]) -> Settings:
    chosen = ChosenExpert(name="main.summer@v1", digest="d", weight=1.0)
    started = Started(strategy="expert", experts=[chosen], reason="by name", prompt_tokens=3)
    serving = scripted([started, Ended(finish_reason="stop", completion_tokens=2)], asked)
    return settings.model_copy(update={"serving_url": run_server(serving).removesuffix("/v1")})


@pytest.fixture
def state(ask: Ask) -> Ask:
    """Give a version a state."""
    return lambda name, state, **said: ask("put", f"/experts/{name}/state", {"state": state, **said})


def chat(client: openai.OpenAI, model: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "x"}]
    return client.chat.completions.with_raw_response.create(model=model, messages=messages, **options)


def findings(engine: Engine) -> list[str]:
    with system_session(engine) as session:
        rules = ("alias", "release", "yanked", "numbered")
        return [one.rule for one in invariants.examine(session) if any(word in one.rule for word in rules)]


def test_a_deprecated_version_answers_and_its_answers_name_the_successor(
    client: openai.OpenAI, state: Ask, publish_version: Publish, asked: list[bytes]
) -> None:
    old, new = publish_version(), publish_version()
    assert "x-zhub-warning" not in chat(client, old).headers
    told = state(old, "deprecated", successor=new, reason="v2 knows more")
    assert (told["state"], told["successor"], told["state_reason"]) == ("deprecated", new, "v2 knows more.")
    warning = f"{old} is deprecated: v2 knows more. Use {new}."
    answer = chat(client, old)
    assert answer.headers["x-zhub-warning"] == warning
    assert answer.parse().to_dict()["routing"]["warnings"] == [warning]
    streamed = chat(client, old, stream=True)
    assert streamed.headers["x-zhub-warning"] == warning
    list(streamed.parse())
    # Serving of the release before reads what it is asked as it did.
    assert b"warning" not in asked[-1] and GenerationRequest.model_validate_json(asked[-1]).experts[0].name == old


def test_a_deprecated_version_says_so_wherever_it_is_shown(ask: Ask, state: Ask, publish_version: Publish) -> None:
    old, new = publish_version(), publish_version()
    state(old, "deprecated", successor=new)
    assert {one["id"]: one["state"] for one in ask("get", "/experts")["data"]} == {old: "deprecated", new: "ready"}
    assert ask("get", f"/experts/{old}")["successor"] == new
    change = ask("get", f"/experts/{old}/changes")["data"][0]["changes"]
    assert change["state"] == {"from": "ready", "to": "deprecated"} and change["successor"]["to"] == new
    assert state(old, "ready")["successor"] is None


def test_a_yanked_version_answers_nothing_and_says_why_and_what_to_use(
    client: openai.OpenAI, ask: Ask, state: Ask, publish_version: Publish, asked: list[bytes]
) -> None:
    old, new = publish_version(), publish_version()
    state(old, "yanked", reason=WHY, successor=new)
    refused_with(404, f"{old} was yanked: {WHY}. Use {new}.", chat, client, old)
    mixture = {"experts": [{"model": old, "weight": 1.0}]}
    refused_with(404, WHY, chat, client, "tiny", extra_body=mixture)
    assert asked == []
    assert [one.id for one in client.models.list() if "summer" in one.id] == [new]
    assert {one["id"]: one["state"] for one in ask("get", "/experts")["data"]}[old] == "yanked"
    state(old, "ready")
    assert chat(client, old).parse().to_dict()["experts"][0]["name"] == old


def test_nothing_begins_from_a_yanked_version_and_no_alias_comes_to_point_to_it(
    client: openai.OpenAI, ask: Ask, state: Ask, publish_version: Publish, suite_file: str
) -> None:
    name = publish_version()
    state(name, "yanked", reason=WHY)
    refused_with(409, WHY, ask, "put", "/experts/main.summer/aliases/prod", {"version": name})
    pins = {"name": "support", "strategy": "centroid", "experts": [{"model": name}]}
    refused_with(404, WHY, ask, "post", "/releases", pins)
    train = partial(client.fine_tuning.jobs.create, training_file=suite_file, method=METHOD)
    refused_with(404, WHY, train, model=name)
    refused_with(404, WHY, ask, "post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})
    gate = {"model": name, "suites": [{"file": suite_file, "grader": GRADER}]}
    refused_with(409, WHY, ask, "post", "/promotions", gate)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"state": "yanked"}, "say why"),
        ({"state": "deprecated"}, "successor: name the version"),
        ({"state": "deprecated", "successor": "main.summer@v1"}, "its own successor"),
        ({"state": "ready", "reason": "x"}, "Leave it out"),
        ({"state": "deprecated", "successor": "main.summer@v2", "detach": True}, "detach"),
    ],
)
def test_what_cannot_be_said_of_a_version_is_refused(
    ask: Ask, publish_version: Publish, body: dict[str, Any], message: str
) -> None:
    name, _ = publish_version(), publish_version()
    refused_with(400, message, ask, "put", f"/experts/{name}/state", body)


def test_two_versions_are_not_each_others_successors(state: Ask, publish_version: Publish) -> None:
    first, second = publish_version(), publish_version()
    state(first, "deprecated", successor=second)
    refused_with(400, "its own successor, and", state, second, "deprecated", successor=first)


def test_what_needs_a_version_is_listed_and_in_the_way_until_it_is_detached(
    ask: Ask, state: Ask, publish_version: Publish, suite_file: str, system_engine: Engine
) -> None:
    name, other = publish_version(), publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    pins = {"name": "support", "strategy": "centroid", "experts": [{"model": name}]}
    release = ask("post", "/releases", pins)["id"]
    ask("put", "/releases/main.support/aliases/prod", {"version": release})
    gate = ask("post", "/promotions", {"model": name, "suites": [{"file": suite_file, "grader": GRADER}]})
    training = {"model": name, "method": METHOD, "suffix": "other"}
    ask("post", "/schedules", {"name": "weekly", "dataset": "suite", "training": training, "on_new_data": True})
    needs = ask("get", f"/experts/{name}/needs?action=yank")["data"]
    assert [(need["kind"], need["id"]) for need in needs] == [
        ("alias", "main.summer@prod"),
        ("release", release),
        ("promotion", gate["id"]),
        ("schedule", "weekly"),
    ]
    assert ask("get", f"/experts/{other}/needs?action=yank")["data"] == []
    refused_with(409, "'@prod' points to main.summer@v1", state, name, "yanked", reason=WHY)
    assert state(name, "yanked", reason=WHY, detach=True)["state"] == "yanked"
    assert ask("get", "/experts/main.summer/aliases/prod")["moves"][0]["reason"] == f"{name} was yanked."
    refused_with(404, "It pins a version that answers no more", ask, "get", f"/models/{release}")
    with system_session(system_engine) as session:
        assert f"{name} was yanked." in str(session.scalars(select(Schedule.paused_because)).one())
        assert session.scalars(select(Job.desired).where(Job.kind == "gate")).one() == "cancel"
    assert findings(system_engine) == []


def test_a_schedule_that_is_resumed_is_told_that_its_start_was_yanked(
    ask: Ask, state: Ask, publish_version: Publish, suite_file: str
) -> None:
    name = publish_version()
    training = {"model": name, "method": METHOD, "suffix": "other"}
    body = {"name": "weekly", "dataset": "suite", "training": training, "on_new_data": True}
    schedule = ask("post", "/schedules", body)["id"]
    state(name, "yanked", reason=WHY, detach=True)
    ask("post", f"/schedules/{schedule}/resume", {})
    ask("post", f"/schedules/{schedule}/run", {})
    tick = ask("get", f"/schedules/{schedule}/ticks")["data"][0]
    assert tick["outcome"] == "refused" and WHY in tick["message"]


def test_a_gate_whose_version_is_yanked_promotes_nothing(
    ask: Ask, state: Ask, publish_version: Publish, suite_file: str, system_engine: Engine
) -> None:
    name = publish_version(**z("11"))
    ask("post", "/promotions", {"model": name, "suites": [{"file": suite_file, "grader": GRADER}]})
    with system_session(system_engine) as session:
        session.execute(text("UPDATE expert_versions SET yanked_at = now(), state_reason = 'It leaks.'"))
    advance(system_engine)
    promotion = ask("get", "/promotions")["data"][0]
    assert promotion["status"] == "failed" and "was yanked" in promotion["error"]["message"]
    assert ask("get", "/aliases")["data"] == []


def test_a_version_is_deleted_with_what_needs_it_detached(
    ask: Ask, publish_version: Publish, system_engine: Engine
) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    pins = {"name": "support", "strategy": "centroid", "experts": [{"model": name}]}
    release = ask("post", "/releases", pins)["id"]
    ask("put", "/releases/main.support/aliases/prod", {"version": release})
    assert ask("delete", f"/experts/{name}?detach=true")["deleted"] is True
    assert ask("get", "/aliases")["data"] == []
    refused_with(404, "deleted", ask, "get", f"/models/{release}")
    assert findings(system_engine) == []


def test_a_yank_and_a_promotion_at_the_same_time_cannot_both_succeed(
    state: Ask, publish_version: Publish, api_engine: Engine, system_engine: Engine, caller: Caller
) -> None:
    name = publish_version()
    with system_session(system_engine) as session:
        record = versions.get_version(session, caller.project_id, name)
        state(name, "yanked", reason=WHY)
        with pytest.raises(Exception, match="was yanked"):
            versions.keep(session, [record])


FROZEN = {
    "expert_versions": ("digest = 'x'", "manifest = '{}'", "version = 9", "key_prefix = 'x'", "score = 1"),
    "release_versions": ("digest = 'x'", "strategy = 'mixture'", "description = 'x'"),
    "release_experts": ("weight = 2", "version_id = gen_random_uuid()"),
    "dataset_versions": ("sha256 = 'x'", "version = 9"),
    "alias_moves": ("by = 'x'", "reason = 'x'"),
    "expert_changes": ("by = 'x'", "changes = '[]'"),
}


@pytest.mark.parametrize("table", FROZEN)
def test_the_database_refuses_to_change_or_delete_what_was_published(
    ask: Ask, publish_version: Publish, suite_file: str, system_engine: Engine, table: str
) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    ask("patch", f"/experts/{name}", {"description": "x"})
    ask("post", "/releases", {"name": "support", "strategy": "centroid", "experts": [{"model": name}]})
    for statement in (*(f"UPDATE {table} SET {column}" for column in FROZEN[table]), f"DELETE FROM {table}"):
        with (
            pytest.raises(IntegrityError, match="was published and is never"),
            system_session(system_engine) as session,
        ):
            session.execute(text(statement))
