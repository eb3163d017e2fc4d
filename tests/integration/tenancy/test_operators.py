"""Operators make and suspend organisations, by their token or by an operator's key, and see nothing of theirs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from api_requests import raw
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import ProgrammingError

from zhub.database.sessions import operator_session, tenant_session
from zhub.models import Organization, Project
from zhub.process.config import Settings
from zhub.tenancy.keys import Caller
from zhub_api.app import create_app

TOKEN = "operator-" * 5
PLATFORM = "/v1/platform/organizations"


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    made = create_app(settings.model_copy(update={"operator_token": SecretStr(TOKEN)}))
    yield made
    made.state.context.engine.dispose()


def make(api_url: str, name: str = "initech") -> Any:
    answer = raw(api_url, TOKEN, "POST", PLATFORM, json={"name": name, "owner": "bill@initech.org"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def join(api_url: str, token: str) -> str:
    body = {"token": token, "name": "Bill"}
    answer = raw(api_url, None, "POST", "/v1/invitations/accept", json=body).json()
    return str(answer["api_key"]["value"])


def test_the_first_organisation_takes_no_access_to_the_database(api_url: str) -> None:
    organization = make(api_url)
    key = join(api_url, organization["invitation"]["token"])
    me = raw(api_url, key, "GET", "/v1/me").json()
    assert (me["organization"]["name"], me["project"]["name"], me["user"]["role"]) == ("initech", "default", "owner")
    assert raw(api_url, key, "GET", "/v1/files").json()["data"] == []


def test_organisations_are_listed_for_operators(api_url: str, make_key: Callable[..., str]) -> None:
    make_key("acme")
    make(api_url)
    listed = raw(api_url, TOKEN, "GET", PLATFORM).json()["data"]
    assert [entry["name"] for entry in listed] == ["initech", "acme"]
    operators = make_key("acme")
    assert raw(api_url, operators, "GET", PLATFORM).json()["data"] == listed


def test_the_name_of_an_organisation_is_given_once(api_url: str) -> None:
    make(api_url)
    answer = raw(api_url, TOKEN, "POST", PLATFORM, json={"name": "initech", "owner": "a@b.org"})
    assert answer.status_code == 409 and "'initech' already" in answer.json()["error"]["message"]


def test_a_suspended_organisation_does_nothing_until_it_is_resumed(api_url: str) -> None:
    organization = make(api_url)
    key = join(api_url, organization["invitation"]["token"])
    suspended = raw(api_url, TOKEN, "POST", f"{PLATFORM}/{organization['id']}/suspend").json()
    assert suspended["status"] == "suspended"
    answer = raw(api_url, key, "GET", "/v1/files")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "access_ended")
    assert raw(api_url, TOKEN, "POST", f"{PLATFORM}/{organization['id']}/resume").json()["status"] == "active"
    assert raw(api_url, key, "GET", "/v1/files").status_code == 200


def test_an_operator_invites_another_owner_where_the_first_is_gone(api_url: str) -> None:
    organization = make(api_url)
    answer = raw(api_url, TOKEN, "POST", f"{PLATFORM}/{organization['id']}/owners", json={"email": "peter@initech.org"})
    me = raw(api_url, join(api_url, answer.json()["token"]), "GET", "/v1/me").json()
    assert (me["user"]["email"], me["user"]["role"]) == ("peter@initech.org", "owner")


def test_the_operators_token_reaches_no_organisations_data(api_url: str) -> None:
    make(api_url)
    for path in ("/v1/files", "/v1/organization/users", "/v1/organization/audit_logs", "/v1/models"):
        assert raw(api_url, TOKEN, "GET", path).status_code in (403, 404)


def test_a_wrong_token_is_no_key(api_url: str) -> None:
    assert raw(api_url, TOKEN + "x", "GET", PLATFORM).status_code == 401


def test_without_a_token_of_its_own_an_empty_one_is_nobodys(settings: Settings) -> None:
    assert not settings.is_operator_token("")


def test_a_short_token_is_refused_at_the_start(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="at least 32 characters"):
        Settings(**settings.model_dump() | {"operator_token": SecretStr("short")})


def test_a_tenant_makes_no_organisation_and_resumes_not_even_its_own(api_engine: Engine, caller: Caller) -> None:
    statements = (
        "UPDATE organizations SET suspended_at = NULL",
        "INSERT INTO organizations (id, name) VALUES (gen_random_uuid(), 'x')",
    )
    for statement in statements:
        with (
            pytest.raises(ProgrammingError, match="violates row-level security policy"),
            tenant_session(api_engine, caller.org_id) as session,
        ):
            session.execute(text(statement))


def test_an_operators_session_sees_organisations_and_nothing_that_they_own(
    api_engine: Engine, caller: Caller, make_key: Callable[..., str]
) -> None:
    make_key("globex")
    with operator_session(api_engine) as session:
        assert set(session.scalars(select(Organization.name))) == {"acme", "globex"}
        assert session.scalars(select(Project)).all() == []
