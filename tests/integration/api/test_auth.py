"""Who may ask: every route wants a key and a scope, and shows nothing of other projects."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import raw, refused
from fastapi import FastAPI
from route_requests import ANY_KEY, BODIES, KEYLESS, OPEN, at, routes
from suites import METHOD

Client = openai.OpenAI
OpenClient = Callable[..., openai.OpenAI]
MakeKey = Callable[..., str]
ADMINISTRATION = ("/v1/organization/", "/v1/platform/")
# The version of these tests has no such file, no scheduler has signed it, and its export has not ended.
OWN_ANSWERS = {
    "/v1/experts/{name}/z": 409,
    "/v1/experts/{name}/attestation": 409,
    "/v1/expert_exports/{export_id}/files/{filename}": 409,
}


def test_every_route_asks_for_a_key(app: FastAPI, api_url: str, subtests: pytest.Subtests) -> None:
    for method, path in routes(app):
        with subtests.test(route=f"{method} {path}"):
            response = raw(api_url, None, method, at(path), **BODIES.get((method, path), {}))
            # Nobody can log in here: the API of this test has no OpenID provider.
            assert (response.status_code == 401) == (path not in OPEN | {"/v1/login"})


def test_every_route_asks_for_a_scope(app: FastAPI, api_url: str, make_key: MakeKey, subtests: pytest.Subtests) -> None:
    key = make_key(scopes=())
    for method, path in routes(app):
        if path not in OPEN | KEYLESS | ANY_KEY:
            with subtests.test(route=f"{method} {path}"):
                response = raw(api_url, key, method, at(path), **BODIES.get((method, path), {}))
                assert (response.status_code, response.json()["error"]["code"]) == (403, "missing_scope")


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_what_a_project_owns_is_not_there_for_anybody_else(
    app: FastAPI,
    api_url: str,
    make_key: MakeKey,
    owned_places: dict[str, str],
    subtests: pytest.Subtests,
    other: tuple[str, str],
) -> None:
    ours, theirs = make_key(), make_key(*other)
    # Base models belong to the platform, and their decomposition to who added them.
    shared = {"/v1/base_models/{name}", "/v1/base_models/{name}/queue"}
    for method, path in routes(app):
        # Those of the administration are held apart in test_strangers: an organisation's keys see all its projects.
        if "{" in path and method == "get" and path not in shared and not path.startswith(ADMINISTRATION):
            with subtests.test(route=path):
                url = path.format_map(owned_places)
                statuses = [raw(api_url, key, "GET", url).status_code for key in (ours, theirs)]
                assert statuses == [OWN_ANSWERS.get(path, 200), 404]


@pytest.mark.parametrize("other", [("globex", "main"), ("acme", "other")])
def test_nobody_else_can_change_what_a_project_owns(
    open_client: OpenClient, make_key: MakeKey, train: Callable[..., Any], checked_file: str, other: tuple[str, str]
) -> None:
    stranger = open_client(make_key(*other))
    job = train()
    for call in (
        lambda: stranger.fine_tuning.jobs.cancel(job.id),
        lambda: stranger.fine_tuning.jobs.pause(job.id),
        lambda: stranger.fine_tuning.jobs.resume(job.id),
        lambda: stranger.files.delete(checked_file),
    ):
        assert refused(call).status_code == 404


def test_nobody_else_can_train_on_a_projects_file(
    open_client: OpenClient, make_key: MakeKey, checked_file: str
) -> None:
    stranger = open_client(make_key("globex"))
    error = refused(lambda: stranger.fine_tuning.jobs.create(model="tiny", training_file=checked_file, method=METHOD))
    assert error.code == "file_not_found"


def test_lists_show_nothing_of_others(open_client: OpenClient, make_key: MakeKey, publish: Callable[..., str]) -> None:
    name = publish()
    stranger = open_client(make_key("globex"))
    listed = [*stranger.files.list(), *stranger.fine_tuning.jobs.list()]
    assert listed == [] and name not in [model.id for model in stranger.models.list()]


def test_a_wrong_key_is_an_authentication_error(open_client: OpenClient) -> None:
    with pytest.raises(openai.AuthenticationError):
        open_client("sk-nothing").files.list()


def test_a_missing_scope_is_named(open_client: OpenClient, make_key: MakeKey) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="files:read"):
        open_client(make_key(scopes=("chat",))).files.list()
