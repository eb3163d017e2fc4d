"""What each role may do over HTTP, cell by cell: every route says what it needs, and lets nobody else do it."""

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from declared_rights import declared_routes
from fastapi import FastAPI
from roles_page import with_tables
from route_requests import BODIES, KEYLESS, OPEN, at

from zhub.ids import public_id
from zhub.tenancy.keys import Caller
from zhub.tenancy.scopes import SCOPES, Role, scopes_of

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "roles.md"
CELLS = [(role, None) for role in ("owner", "admin", "developer", "viewer", "member")] + [
    ("member", project_role) for project_role in ("admin", "developer", "viewer")
]


def test_every_route_declares_what_it_needs(app: FastAPI) -> None:
    routes = list(declared_routes(app))
    documented = {(method.upper(), path) for path, of in app.openapi()["paths"].items() for method in of}
    assert {(route.method, route.path) for route in routes} == documented
    undeclared = {route.path for route in routes if route.scopes is None}
    assert undeclared == OPEN | KEYLESS
    assert {scope for route in routes for scope in route.scopes or ()} <= set(SCOPES)


def test_every_scope_of_a_role_opens_some_route(app: FastAPI) -> None:
    needed = {scope for route in declared_routes(app) for scope in route.scopes or ()}
    # It is asked for where the body says whom a base model is for.
    assert set(SCOPES) - needed == {"platform_base_models:write"}


@pytest.mark.parametrize(("role", "project_role"), CELLS)
def test_a_role_may_do_what_the_table_says_and_nothing_else(
    app: FastAPI,
    api_url: str,
    make_member: Callable[..., str],
    caller: Caller,
    subtests: pytest.Subtests,
    role: str,
    project_role: str | None,
) -> None:
    key = make_member(role, project_role)
    rights = scopes_of(Role.of(role), None if project_role is None else Role.of(project_role))
    here = public_id("project", caller.project_id)
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=api_url.removesuffix("/v1"), headers=headers, timeout=20) as http:
        for route in declared_routes(app):
            if not route.scopes:
                continue  # of these, one ends the key
            with subtests.test(route=f"{route.method} {route.path}"):
                path = at(route.path, project_id=here) if route.in_project else at(route.path)
                body = BODIES.get((route.method.lower(), route.path), {})
                answer = http.request(route.method, path, **body)
                refused = answer.status_code == 403 and answer.json()["error"]["code"] == "missing_scope"
                hidden = route.in_project and not rights and answer.status_code == 404
                assert (refused or hidden) == (not rights.issuperset(route.scopes)), answer.text


def test_the_page_of_roles_is_what_the_code_says(app: FastAPI) -> None:
    if os.environ.get("ZHUB_FREEZE_ROLES"):
        PAGE.write_text(with_tables(PAGE.read_text(), app))
    assert PAGE.read_text() == with_tables(PAGE.read_text(), app), (
        "run `ZHUB_FREEZE_ROLES=1 make test PYTEST_ARGS=tests/integration/api/test_rights.py`"
    )


def test_roles_have_the_rights_of_those_below_them() -> None:
    every = [scopes_of(role, None) for role in Role]
    assert all(lower <= higher for lower, higher in zip(every, every[1:], strict=False))


def test_a_role_in_a_project_gives_nothing_in_the_organisation() -> None:
    assert not {"organization:read", "organization:write", "audit:read"} & scopes_of(Role.MEMBER, Role.ADMIN)


def test_the_rights_of_roles_are_those_that_were_decided() -> None:
    assert scopes_of(Role.MEMBER, None) == frozenset()
    assert scopes_of(Role.VIEWER, None) == {
        "files:read", "jobs:read", "models:read", "webhooks:read", "members:read", "keys:own", "organization:read"
    }  # fmt: skip
    assert scopes_of(Role.ADMIN, None) - scopes_of(Role.DEVELOPER, None) == {
        "project:write", "grants:write", "members:write", "keys:write", "organization:write", "audit:read"
    }  # fmt: skip
    assert scopes_of(Role.OWNER, None) == scopes_of(Role.ADMIN, None)
