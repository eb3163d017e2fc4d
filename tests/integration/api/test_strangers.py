"""What an organisation or a project owns is not there for strangers: every route, asked as if it were.

A stranger is answered exactly as where there is no such thing, so that nothing tells whether there is.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from route_requests import BODIES, KEYLESS, OPEN, at, routes

from zhub.tenancy.scopes import PROJECT_SCOPES

MakeMember = Callable[..., str]
# Base models belong to the platform.
# The first belong to the platform; of the second each project has its own, whatever others call theirs.
SHARED = ("/v1/base_models/", "/v1/protected_aliases/")
STRANGERS: dict[str, dict[str, Any]] = {
    "an owner of another organisation": {"role": "owner", "organization": "globex"},
    "a viewer of another organisation": {"role": "viewer", "organization": "globex"},
    "an admin of another project": {"role": "member", "project_role": "admin", "project": "other"},
}


@pytest.fixture
def places(owned_places: dict[str, str], open_admin: Callable[[str], Any], make_member: MakeMember) -> dict[str, str]:
    """What acme's project ``main`` owns, and what its administration has."""
    admin = open_admin(make_member("owner", email="owner@acme.org"))
    (main,) = admin.projects.list()
    account = admin.projects.service_accounts.create(main.id, name="ci")
    (owner,) = admin.users.list()
    invitation = admin.invites.create(email="soon@acme.org", role="viewer")
    ids = {"project_id": main.id, "user_id": owner.id, "account_id": account.id, "key_id": account.api_key.id}
    return owned_places | ids | {"invite_id": invitation.id}


@pytest.fixture
def open_http(api_url: str) -> Iterator[Callable[[str], httpx.Client]]:
    opened: list[httpx.Client] = []

    def open_one(key: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"}
        opened.append(httpx.Client(base_url=api_url.removesuffix("/v1"), headers=headers, timeout=20))
        return opened[-1]

    yield open_one
    for http in opened:
        http.close()


def nothing(place: str) -> str:
    """What looks like a place, and is nowhere."""
    kind, dash, digits = place.partition("-")
    if dash and len(digits) == 32:
        return f"{kind}-{'0' * 32}"
    return {"main.summer": "main.nobody"}.get(place, place.replace("summer", "nobody").replace("support", "nobody"))


def told(answer: httpx.Response, places: list[str]) -> tuple[int, str]:
    """Status and body of an answer, without the names that it was asked by."""
    text = answer.text
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, "…")
    return answer.status_code, text


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_answered_as_if_there_were_nothing(
    app: FastAPI,
    places: dict[str, str],
    make_member: MakeMember,
    open_http: Callable[[str], httpx.Client],
    subtests: pytest.Subtests,
    stranger: str,
) -> None:
    http = open_http(make_member(**STRANGERS[stranger]))
    absent = {name: nothing(place) for name, place in places.items()}
    asked = [*places.values(), *absent.values()]
    for method, path in routes(app):
        if "{" not in path or path.startswith(SHARED):
            continue
        with subtests.test(route=f"{method} {path}"):
            body = BODIES.get((method, path), {})
            of_theirs, of_nothing = (http.request(method, at(path, **given), **body) for given in (places, absent))
            assert told(of_theirs, asked) == told(of_nothing, asked)
            assert of_theirs.status_code in (400, 403, 404)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_no_list_shows_a_stranger_anything(
    app: FastAPI,
    places: dict[str, str],
    make_member: MakeMember,
    open_http: Callable[[str], httpx.Client],
    subtests: pytest.Subtests,
    stranger: str,
) -> None:
    http = open_http(make_member(**STRANGERS[stranger]))
    told_apart = [place for place in places.values() if place.partition("-")[2].isalnum() and len(place) > 20]
    assert len(told_apart) > 10
    for method, path in routes(app):
        if method == "get" and "{" not in path:
            with subtests.test(route=path):
                answer = http.get(path, **BODIES.get((method, path), {}))
                assert [place for place in [*told_apart, "owner@acme.org"] if place in answer.text] == []


@pytest.mark.parametrize(
    "ended", [{"revoked_at": datetime(2024, 1, 1, tzinfo=UTC)}, {"expires_at": datetime(2024, 1, 1, tzinfo=UTC)}]
)
def test_a_key_that_has_ended_opens_nothing(
    app: FastAPI,
    make_member: MakeMember,
    open_http: Callable[[str], httpx.Client],
    subtests: pytest.Subtests,
    ended: dict[str, Any],
) -> None:
    http = open_http(make_member("owner", **ended))
    for method, path in routes(app):
        if path not in OPEN | KEYLESS:
            with subtests.test(route=f"{method} {path}"):
                answer = http.request(method, at(path), **BODIES.get((method, path), {}))
                assert answer.status_code == 401


def test_the_rights_of_a_bare_key_end_at_its_project(
    places: dict[str, str], make_key: Callable[..., str], open_http: Callable[[str], httpx.Client]
) -> None:
    http = open_http(make_key("acme", "other", scopes=PROJECT_SCOPES))
    path = at("/v1/organization/projects/{project_id}/api_keys", **places)
    assert http.get(path).status_code == 404
