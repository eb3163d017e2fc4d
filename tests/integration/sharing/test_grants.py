"""Experts of other organisations: found, used, forked and managed as far as they are granted, and no farther."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused
from sharing_requests import EXPERT, SHARED, Ask, asking, chat, give, searched
from sqlalchemy import Engine, select
from suites import METHOD

from zhub.database.sessions import system_session
from zhub.generation import GenerationRequest
from zhub.models import Job, SharedUsage, TokenUsage
from zhub.tenancy.keys import Caller

Publish = Callable[..., str]


def test_a_granted_expert_is_named_with_its_organisation_and_answers(
    ask: Ask, globex: openai.OpenAI, version: str, asked: list[bytes]
) -> None:
    give(ask)
    ask("put", f"/experts/{EXPERT}/aliases/prod", {"version": version})
    for model in (f"{SHARED}@v1", f"{SHARED}@prod"):
        assert chat(globex, model).choices[0].message.content == "a"
        sent = GenerationRequest.model_validate_json(asked[-1])
        assert [expert.name for expert in sent.experts] == [f"{SHARED}@v1"]
        assert sent.shared == [] and b"shared" not in asked[-1]  # nothing of whose it is leaves the API
    assert globex.models.retrieve(f"{SHARED}@prod").id == f"{SHARED}@v1"


@pytest.mark.parametrize(
    ("permission", "statuses"),
    [
        ("view", {"card": 200, "chat": 403, "train": 403, "promote": 403}),
        ("use", {"card": 200, "chat": 200, "train": 403, "promote": 403}),
        ("fork", {"card": 200, "chat": 200, "train": 200, "promote": 403}),
        ("manage", {"card": 200, "chat": 200, "train": 200, "promote": 200}),
    ],
)
def test_each_permission_has_those_before_it_and_no_other(
    ask: Ask,
    globex: openai.OpenAI,
    version: str,
    make_file: Callable[..., str],
    make_caller: Callable[..., Caller],
    permission: str,
    statuses: dict[str, int],
) -> None:
    give(ask, permission)
    theirs = asking(globex)
    file = make_file(make_caller("globex"))
    calls: dict[str, Callable[[], Any]] = {
        "card": lambda: theirs("get", f"/experts/{SHARED}/card"),
        "chat": lambda: chat(globex),
        "train": lambda: globex.fine_tuning.jobs.create(
            model=f"{SHARED}@v1", training_file=file, method=METHOD, suffix="own"
        ),
        "promote": lambda: theirs("put", f"/experts/{SHARED}/aliases/prod", {"version": f"{SHARED}@v1"}),
    }
    for name, call in calls.items():
        try:
            call()
        except openai.APIStatusError as error:
            assert (error.status_code, error.code) == (statuses[name], "access_not_granted"), name
        else:
            assert statuses[name] == 200, name


def test_a_manager_moves_aliases_in_the_owners_organisation(ask: Ask, globex: openai.OpenAI, version: str) -> None:
    grant = give(ask, "manage")
    theirs = asking(globex)
    moved = theirs("put", f"/experts/{SHARED}/aliases/prod", {"version": f"{SHARED}@v1", "expected": None})
    assert (moved["id"], moved["version"]) == (f"{SHARED}@prod", f"{SHARED}@v1")
    alias = ask("get", f"/experts/{EXPERT}/aliases/prod")
    assert alias["version"] == version and alias["moves"][0]["by"].startswith("key-")
    ask("delete", f"/grants/{grant}")
    again = refused(lambda: theirs("put", f"/experts/{SHARED}/aliases/next", {"version": f"{SHARED}@v1"}))
    assert again.status_code == 404


def test_a_fork_is_a_training_from_the_granted_version_and_keeps_where_it_comes_from(
    ask: Ask,
    globex: openai.OpenAI,
    version: str,
    make_file: Callable[..., str],
    make_caller: Callable[..., Caller],
    system_engine: Engine,
) -> None:
    give(ask, "fork")
    file = make_file(make_caller("globex"))
    globex.fine_tuning.jobs.create(model=f"{SHARED}@v1", training_file=file, method=METHOD, suffix="own")
    with system_session(system_engine) as session:
        (start,) = (
            session.scalars(select(Job).where(Job.kind == "train", Job.spec["expert"].astext == "own"))
            .one()
            .spec["starts"]
        )
    assert (start["name"], start["digest"]) == (f"{SHARED}@v1", ask("get", f"/experts/{version}")["digest"])


def test_what_is_granted_is_found_and_nothing_beside_it(
    ask: Ask, globex: openai.OpenAI, publish_version: Publish
) -> None:
    for name in ("summer", "winter", "spring", "autumn"):
        publish_version(name)
        ask("patch", f"/experts/main.{name}", {"tags": {"season": name}})
    theirs = asking(globex)
    assert searched(theirs) == []
    give(ask, "view")
    ask("put", "/experts/main.winter/visibility", {"visibility": "granted"})
    ask("put", "/experts/main.spring/visibility", {"visibility": "public"})
    ask("put", "/experts/main.autumn/visibility", {"visibility": "organization"})
    assert searched(theirs) == [f"acme.main.{name}@v1" for name in ("spring", "winter", "summer")]
    assert searched(theirs, "owner:acme tag:season=winter") == ["acme.main.winter@v1"]
    answer = theirs("get", "/catalogue?facets=true")
    assert answer["facets"]["matches"] == 3
    tags = {one["value"] for one in answer["facets"]["tag"]}
    assert tags == {"season", "season=summer", "season=winter", "season=spring"}
    assert theirs("get", "/catalogue?q=tag:season%3Dautumn")["nothing"] == "'tag:season=autumn' alone finds nothing."
    assert [chat(globex, "acme.main.spring@v1").model, refused(lambda: chat(globex, "acme.main.winter@v1")).code] == [
        "acme.main.spring@v1",
        "access_not_granted",
    ]


def test_pages_go_over_what_is_own_and_what_is_shared(
    ask: Ask, globex: openai.OpenAI, publish_version: Publish, make_caller: Callable[..., Caller]
) -> None:
    theirs, caller = asking(globex), make_caller("globex")
    for number in range(3):
        publish_version(f"shared-{number}")
        ask("put", f"/experts/main.shared-{number}/visibility", {"visibility": "public"})
        publish_version(f"own-{number}", owner=caller)
    paged, after = [], ""
    for _ in range(6):
        answer = theirs("get", f"/catalogue?limit=1{after}")
        paged += [entry["id"] for entry in answer["data"]]
        after = f"&after={answer['next']}"
    assert paged == [
        name for number in (2, 1, 0) for name in (f"main.own-{number}@v1", f"acme.main.shared-{number}@v1")
    ]
    assert answer["next"] is None


def test_other_projects_of_the_organisation_use_what_is_not_private(
    ask: Ask, open_client: Callable[..., openai.OpenAI], make_key: Callable[..., str], version: str
) -> None:
    other = open_client(make_key("acme", "other"))
    assert refused(lambda: chat(other, version)).status_code == 404
    ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "organization"})
    assert chat(other, version).choices[0].message.content == chat(other, f"acme.{version}").choices[0].message.content
    assert searched(asking(other)) == [version]
    assert asking(other)("get", f"/experts/{EXPERT}/card")["permission"] == "fork"
    assert refused(lambda: asking(other)("patch", f"/experts/{EXPERT}", {"archived": True})).status_code == 404


def test_a_grant_of_one_version_is_of_no_other(ask: Ask, globex: openai.OpenAI, publish_version: Publish) -> None:
    first, second = publish_version("summer"), publish_version("summer")
    give(ask, "use", first)
    ask("put", f"/experts/{EXPERT}/aliases/prod", {"version": second})
    assert chat(globex).choices and searched(asking(globex)) == [f"{SHARED}@v1"]
    for name in (f"{SHARED}@v2", f"{SHARED}@prod"):
        assert refused(partial(chat, globex, name)).status_code == 404
    error = refused(lambda: give(ask, "manage", first))
    assert (error.status_code, error.param) == (400, "permission")


def test_access_is_asked_for_decided_and_listed_on_both_sides(ask: Ask, globex: openai.OpenAI, version: str) -> None:
    theirs = asking(globex)
    body = {"expert": SHARED, "permission": "use", "message": "For summer."}
    assert refused(lambda: theirs("post", "/access_requests", body)).status_code == 404
    ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "granted"})
    request = theirs("post", "/access_requests", body)
    assert (request["status"], request["direction"], request["message"]) == ("requested", "received", "For summer.")
    assert refused(lambda: theirs("post", "/access_requests", body)).status_code == 409
    assert refused(lambda: chat(globex)).status_code == 403
    (given,) = ask("get", "/grants?status=requested")["data"]
    assert (given["id"], given["grantee"], given["expert"]) == (request["id"], "globex", SHARED)
    own = refused(lambda: theirs("post", f"/grants/{request['id']}/decision", {"approve": True}))
    assert own.status_code == 404
    later = int(time.time()) + 3600
    decided = ask("post", f"/grants/{request['id']}/decision", {"approve": True, "expires_at": later})
    assert (decided["status"], decided["expires_at"]) == ("active", later)
    assert chat(globex).choices
    assert [one["status"] for one in theirs("get", "/grants?direction=received")["data"]] == ["active"]
    assert refused(lambda: ask("post", f"/grants/{request['id']}/decision", {"approve": False})).status_code == 409
    assert theirs("delete", f"/grants/{request['id']}")["status"] == "withdrawn"
    assert refused(lambda: chat(globex)).status_code == 403


def test_a_request_is_denied_and_may_be_made_again(ask: Ask, globex: openai.OpenAI, version: str) -> None:
    ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "granted"})
    body = {"expert": SHARED, "permission": "fork"}
    first = asking(globex)("post", "/access_requests", body)
    assert ask("post", f"/grants/{first['id']}/decision", {"approve": False})["status"] == "denied"
    assert asking(globex)("post", "/access_requests", body)["id"] != first["id"]


def test_a_second_grant_takes_the_place_of_the_first(ask: Ask, globex: openai.OpenAI, version: str) -> None:
    first = give(ask, "fork")
    give(ask, "view")
    assert ask("get", f"/grants/{first}")["status"] == "revoked"
    assert refused(lambda: chat(globex)).status_code == 403


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"organization": "acme"}, 400, "organization"),
        ({"organization": "nobody"}, 404, None),
        ({"expert": "main.nobody"}, 404, None),
        ({"expires_at": 1}, 400, "expires_at"),
        ({"permission": "own"}, 400, "permission"),
        ({"project": "globex"}, 404, None),
    ],
)
def test_a_grant_that_cannot_be_is_refused(
    ask: Ask, globex: openai.OpenAI, version: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    error = refused(
        lambda: ask("post", "/grants", {"expert": EXPERT, "organization": "globex", "permission": "use"} | body)
    )
    assert (error.status_code, error.param) == (status, param)


def test_use_is_metered_for_who_uses_and_for_who_owns(
    ask: Ask, globex: openai.OpenAI, version: str, system_engine: Engine, until: Callable[..., Any]
) -> None:
    give(ask)
    chat(globex)

    def metered() -> tuple[list[Any], list[Any]]:
        with system_session(system_engine) as session:
            return list(session.scalars(select(TokenUsage))), list(session.scalars(select(SharedUsage)))

    until(lambda: all(metered()))
    ((used,), (shared,)) = metered()
    assert (used.experts, used.prompt_tokens, used.completion_tokens) == (f"{SHARED}@v1", 10, 5)
    assert used.org_id == shared.user_org_id != shared.org_id
    (told,) = ask("get", "/shared_usage")["data"]
    assert (told["model"], told["organization"]) == (version, "globex")
    assert (told["requests"], told["prompt_tokens"], told["completion_tokens"]) == (1, 10, 5)
    assert asking(globex)("get", "/shared_usage")["data"] == []
    assert [entry["used_tokens"] for entry in ask("get", "/catalogue")["data"]] == [15]
