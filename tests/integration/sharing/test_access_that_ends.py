"""What was never granted, or is no longer: the same as what does not exist, also where an answer is under way."""

import json
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from api_requests import refused
from fastapi import FastAPI
from scripted_serving import WAITING, Listener, Script
from sharing_requests import EXPERT, SHARED, Ask, asking, chat, give, searched
from sqlalchemy import Engine, text

from zhub.database.sessions import as_guest, system_session, tenant_session
from zhub.tenancy.keys import Caller


@pytest.mark.parametrize("how", ["revoked", "expired", "lowered", "hidden"])
def test_a_running_answer_ends_when_the_right_to_it_does(
    ask: Ask,
    globex: openai.OpenAI,
    version: str,
    script: Script,
    listener: Listener,
    system_engine: Engine,
    how: str,
) -> None:
    script[2:] = [WAITING]
    if how == "hidden":
        ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "public"})
        grant = None
    else:
        grant = give(ask)
    stream = iter(chat(globex, stream=True))
    next(stream)
    assert listener.waits.wait(10)
    if how == "revoked":
        ask("delete", f"/grants/{grant}")
    elif how == "lowered":
        give(ask, "view")
    elif how == "hidden":
        ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "private"})
    else:
        with system_session(system_engine) as session:
            session.execute(text("UPDATE expert_grants SET expires_at = now()"))
    with pytest.raises(openai.APIError, match="access to acme.main.summer@v1 has ended"):
        list(stream)
    assert listener.left.wait(10)  # and the replica's row is free


def test_a_running_answer_goes_on_while_the_right_to_it_lasts(
    ask: Ask, globex: openai.OpenAI, version: str, app: FastAPI
) -> None:
    give(ask)
    assert [chunk.choices[0].finish_reason for chunk in chat(globex, stream=True)][-1] == "stop"
    assert app.state.serving.watch._watched == set()


@pytest.mark.parametrize("state", ["never granted", "expired", "revoked", "denied", "of another project"])
def test_what_is_not_granted_is_answered_as_what_does_not_exist(
    ask: Ask, globex: openai.OpenAI, version: str, system_engine: Engine, state: str
) -> None:
    if state == "denied":
        ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "granted"})
        request = asking(globex)("post", "/access_requests", {"expert": SHARED, "permission": "use"})
        ask("post", f"/grants/{request['id']}/decision", {"approve": False})
        ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "private"})
    elif state == "of another project":
        give(ask, "manage", project=f"proj-{uuid.uuid4().hex}")
    elif state != "never granted":
        grant = give(ask, "manage")
        with system_session(system_engine) as session:
            if state == "expired":
                session.execute(text("UPDATE expert_grants SET expires_at = now()"))
        if state == "revoked":
            ask("delete", f"/grants/{grant}")
    theirs = asking(globex)
    for local in ("summer", "nowhere"):
        name = f"acme.main.{local}"
        mixture = {"experts": [{"model": f"{name}@v1", "weight": 0.5}]}
        tried: dict[str, Callable[[], Any]] = {
            "chat": partial(chat, globex, f"{name}@v1"),
            "mixture": partial(chat, globex, "auto", extra_body=mixture),
            "card": partial(theirs, "get", f"/experts/{name}/card"),
            "neighbours": partial(theirs, "get", f"/experts/{name}/neighbours"),
            "model": partial(globex.models.retrieve, f"{name}@v1"),
            "ask": partial(theirs, "post", "/access_requests", {"expert": name, "permission": "use"}),
            "promote": partial(theirs, "put", f"/experts/{name}/aliases/prod", {"version": f"{name}@v1"}),
        }
        for what, call in tried.items():
            error = refused(call)
            assert error.status_code == 404, (what, error.message)
            assert error.message.replace(local, "…").count("…") == 1 and "acme" not in error.message.replace(
                name, ""
            ), what
    assert searched(theirs) == [] and theirs("get", "/catalogue?facets=true")["facets"]["matches"] == 0


def test_no_route_answers_for_an_expert_that_is_not_granted(
    ask: Ask, globex: openai.OpenAI, version: str, app: FastAPI, subtests: pytest.Subtests
) -> None:
    """Every route that names an expert, generated from the interface's document: as for one that does not exist."""
    bodies: dict[tuple[str, str], Any] = {
        ("patch", "/v1/experts/{name}"): {"archived": True},
        ("put", "/v1/experts/{name}/card"): {"text": "x"},
        ("put", "/v1/experts/{name}/visibility"): {"visibility": "public"},
        ("put", "/v1/experts/{name}/state"): {"state": "ready"},
        ("post", "/v1/experts/{expert}/aliases/{alias}/rollback"): {},
    }
    theirs = asking(globex)
    for path, methods in app.openapi()["paths"].items():
        if "/v1/experts/{" not in path and path != "/v1/models/{model}":
            continue
        for method in methods:
            for suffix in ("", "@v1"):
                with subtests.test(route=f"{method} {path}", suffix=suffix):
                    answers = []
                    for local in ("summer", "nowhere"):
                        name = f"acme.main.{local}{suffix}"
                        url = path.removeprefix("/v1").format(
                            name=name, expert=name, model=name, against=name, alias="prod", filename="manifest.json"
                        )
                        body = bodies.get((method, path), {"version": name} if method == "put" else None)
                        error = refused(partial(theirs, method, url, body))
                        answers.append((error.status_code, error.message.replace(local, "…")))
                    assert answers[0] == answers[1] and answers[0][0] == 404, answers


def test_a_guest_reads_what_is_shared_and_writes_nothing(
    ask: Ask, version: str, make_caller: Callable[..., Caller], api_engine: Engine
) -> None:
    stranger = make_caller("globex")
    ask("put", f"/experts/{EXPERT}/visibility", {"visibility": "public"})
    with tenant_session(api_engine, stranger.org_id) as session:
        assert session.scalar(text("SELECT count(*) FROM experts")) == 0
        with as_guest(session, stranger.project_id):
            assert session.scalar(text("SELECT count(*) FROM experts")) == 1
            for table in ("jobs", "api_keys", "dataset_versions", "feedback", "evaluations", "expert_changes"):
                assert session.scalar(text(f"SELECT has_table_privilege('{table}', 'SELECT')")) is False
            written = "SELECT has_any_column_privilege('experts', 'UPDATE') OR has_table_privilege('experts', 'INSERT')"
            assert session.scalar(text(written)) is False
        assert session.scalar(text("SELECT count(*) FROM experts")) == 0
        assert session.scalar(text("SELECT current_user = session_user")) is True


def test_a_grant_of_an_expert_that_is_deleted_is_of_none_that_begins_under_its_name(
    ask: Ask, globex: openai.OpenAI, version: str
) -> None:
    grant = give(ask, "use")
    ask("delete", f"/experts/{EXPERT}")
    assert ask("get", f"/grants/{grant}")["status"] == "revoked"
    assert refused(partial(chat, globex)).status_code == 404


def test_what_the_tables_owner_copies_brings_its_own_entries(
    version: str, owner_engine: Engine, system_engine: Engine
) -> None:
    """As a move to another database does, with one table after the other open to the owner."""
    written = (
        "INSERT INTO expert_versions SELECT * FROM jsonb_populate_record(NULL::expert_versions, cast(:row AS jsonb))"
    )
    accuracy = '{"mean": 0.5, "low": 0.1, "high": 0.9, "n": 10}'
    measured = f'[{{"split": "test", "base": {accuracy}, "expert": {accuracy}}}]'
    with system_session(system_engine) as session:
        row = session.scalars(text("SELECT to_jsonb(v) - 'id' - 'version' FROM expert_versions v")).one()
        job = text("INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id', gen_random_uuid(), "
                   "'dedup_key', NULL))).* FROM jobs j LIMIT 1 RETURNING id")  # fmt: skip
        row |= {"job_id": str(session.scalars(job).one()), "id": str(uuid.uuid4()), "version": 2}
    row["manifest"]["evaluations"] = json.loads(measured)
    with owner_engine.begin() as connection:
        connection.execute(text("ALTER TABLE expert_versions NO FORCE ROW LEVEL SECURITY"))
        connection.execute(text(written), {"row": json.dumps(row)})
        connection.execute(text("ALTER TABLE expert_versions FORCE ROW LEVEL SECURITY"))
    with system_session(system_engine) as session:
        counts = [
            session.scalar(text(f"SELECT count(*) FROM {table}")) for table in ("catalogue_entries", "version_metrics")
        ]
    assert counts == [1, 0]
