"""Keys and service accounts that are made, rotated and revoked over the API, by the unmodified client."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from api_requests import raw, refused
from sqlalchemy import Engine, func, select, update

from zhub.database.sessions import system_session
from zhub.models import ApiKey
from zhub.tenancy.scopes import SCOPES

MakeMember = Callable[..., str]
OpenAdmin = Callable[[str], Any]
OpenClient = Callable[..., openai.OpenAI]


@pytest.fixture
def owner(make_member: MakeMember) -> str:
    return make_member("owner", email="owner@acme.org")


@pytest.fixture
def keys_url(api_url: str, owner: str, open_admin: OpenAdmin) -> str:
    """Where the project's keys are."""
    (main,) = open_admin(owner).projects.list()
    return f"/v1/organization/projects/{main.id}/api_keys"


def made(api_url: str, key: str, url: str, **body: Any) -> Any:
    answer = raw(api_url, key, "POST", url, json={"name": "new"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def status(api_url: str, key: str) -> int:
    return raw(api_url, key, "GET", "/v1/me").status_code


def test_a_key_is_shown_once_and_listed_without_its_secret(api_url: str, owner: str, keys_url: str) -> None:
    new = made(api_url, owner, keys_url)
    assert status(api_url, new["value"]) == 200
    listed = raw(api_url, owner, "GET", keys_url).json()["data"]
    assert new["id"] in [entry["id"] for entry in listed]
    assert new["value"] not in str(listed) and new["value"][:17] in str(listed)


def test_a_key_is_its_makers_and_does_what_they_may_then(
    api_url: str, owner: str, keys_url: str, open_admin: OpenAdmin, make_member: MakeMember
) -> None:
    theirs = made(api_url, make_member("developer", email="a@b.org"), keys_url)["value"]
    admin = open_admin(owner)
    (user,) = admin.users.list(emails=["a@b.org"])
    admin.users.update(user.id, role="viewer")
    assert "files:write" not in raw(api_url, theirs, "GET", "/v1/me").json()["scopes"]


def test_nobody_makes_a_key_that_may_do_more_than_they_may(
    api_url: str, keys_url: str, make_member: MakeMember
) -> None:
    viewer = make_member("viewer")
    answer = raw(api_url, viewer, "POST", keys_url, json={"name": "x", "scopes": ["files:write"]})
    assert answer.status_code == 403 and "files:write" in answer.json()["error"]["message"]
    narrow = made(api_url, make_member("admin"), keys_url, scopes=["files:read", "keys:own"])["value"]
    for wanted in (["files:write"], ["organization:write"], ["platform_organizations:write"]):
        answer = raw(api_url, narrow, "POST", keys_url, json={"name": "x", "scopes": wanted})
        assert answer.status_code == 403
    assert set(made(api_url, narrow, keys_url)["scopes"]) == {"files:read", "keys:own"}


def test_a_scope_that_there_is_none_of_is_refused(api_url: str, owner: str, keys_url: str) -> None:
    answer = raw(api_url, owner, "POST", keys_url, json={"name": "x", "scopes": ["file:read"]})
    assert answer.status_code == 400 and "Did you mean 'files:read'?" in answer.json()["error"]["message"]


def test_a_rotated_key_is_valid_for_its_grace_and_then_refused_by_that_reason(
    api_url: str, owner: str, keys_url: str, system_engine: Engine
) -> None:
    old = made(api_url, owner, keys_url)
    new = raw(api_url, owner, "POST", f"{keys_url}/{old['id']}/rotate", json={"grace_seconds": 3600}).json()
    assert (status(api_url, old["value"]), status(api_url, new["value"])) == (200, 200)
    assert (new["name"], new["scopes"], new["owner"]) == (old["name"], old["scopes"], old["owner"])
    with system_session(system_engine) as session:
        session.execute(update(ApiKey).where(ApiKey.successor_id.is_not(None)).values(expires_at=func.now()))
    answer = raw(api_url, old["value"], "GET", "/v1/me")
    assert answer.status_code == 401 and "was rotated" in answer.json()["error"]["message"]
    assert status(api_url, new["value"]) == 200


def test_a_leaked_key_is_refused_as_soon_as_it_is_rotated(api_url: str, owner: str, keys_url: str) -> None:
    old = made(api_url, owner, keys_url)
    raw(api_url, owner, "POST", f"{keys_url}/{old['id']}/rotate", json={"grace_seconds": 0})
    answer = raw(api_url, old["value"], "GET", "/v1/me")
    assert answer.status_code == 401 and "was rotated" in answer.json()["error"]["message"]


def test_a_key_is_rotated_once(api_url: str, owner: str, keys_url: str) -> None:
    old = made(api_url, owner, keys_url)
    answers = [raw(api_url, owner, "POST", f"{keys_url}/{old['id']}/rotate") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 409]
    assert answers[0].json()["id"] in answers[1].json()["error"]["message"]


def test_no_rotation_hands_out_more_than_its_caller_may_do(
    api_url: str, owner: str, keys_url: str, make_member: MakeMember, make_key: Callable[..., str]
) -> None:
    of_owner, narrow = made(api_url, owner, keys_url), made(api_url, owner, keys_url, scopes=["keys:own"])["value"]
    answer = raw(api_url, narrow, "POST", f"{keys_url}/{of_owner['id']}/rotate")
    assert answer.status_code == 403 and "Rotate it with one that has" in answer.json()["error"]["message"]
    for admin in (make_member("member", "admin"), make_member("admin")):
        answer = raw(api_url, admin, "POST", f"{keys_url}/{of_owner['id']}/rotate")
        assert answer.status_code == 403 and "Revoke it instead" in answer.json()["error"]["message"]
    operators = made(api_url, make_key(), keys_url)
    assert (
        raw(api_url, make_member("member", "admin"), "POST", f"{keys_url}/{operators['id']}/rotate").status_code == 403
    )


def test_an_admin_rotates_the_keys_of_service_accounts(
    api_url: str, owner: str, keys_url: str, open_admin: OpenAdmin, make_member: MakeMember
) -> None:
    account = open_admin(owner).projects.service_accounts.create(keys_url.split("/")[4], name="ci")
    rotate = f"{keys_url}/{account.api_key.id}/rotate"
    assert raw(api_url, make_member("developer"), "POST", rotate).status_code == 403
    assert status(api_url, raw(api_url, make_member("member", "admin"), "POST", rotate).json()["value"]) == 200


def test_a_revoked_key_is_refused_at_once(api_url: str, owner: str, keys_url: str, open_admin: OpenAdmin) -> None:
    new = made(api_url, owner, keys_url)
    project_id = keys_url.split("/")[4]
    assert open_admin(owner).projects.api_keys.delete(new["id"], project_id=project_id).deleted
    assert status(api_url, new["value"]) == 401
    assert new["id"] not in [key.id for key in open_admin(owner).projects.api_keys.list(project_id)]


def test_only_an_admin_changes_the_keys_of_others(
    api_url: str, owner: str, keys_url: str, make_member: MakeMember
) -> None:
    theirs, others = made(api_url, owner, keys_url), make_member("developer")
    for method, url in (("DELETE", theirs["id"]), ("POST", f"{theirs['id']}/rotate")):
        assert raw(api_url, others, method, f"{keys_url}/{url}").status_code == 403
    own = made(api_url, others, keys_url)
    assert raw(api_url, others, "DELETE", f"{keys_url}/{own['id']}").status_code == 200
    own = made(api_url, others, keys_url)
    assert raw(api_url, owner, "DELETE", f"{keys_url}/{own['id']}").status_code == 200


def test_the_scopes_of_a_key_are_changed_for_its_next_request(
    api_url: str, owner: str, keys_url: str, open_admin: OpenAdmin
) -> None:
    new = made(api_url, owner, keys_url)
    changed = open_admin(owner).projects.api_keys.update(
        new["id"], project_id=keys_url.split("/")[4], scopes=["files:read"], expires_in_seconds=3600
    )
    assert changed.expires_at is not None
    assert raw(api_url, new["value"], "GET", "/v1/me").json()["scopes"] == ["files:read"]


def test_a_service_account_works_in_its_project_as_its_role_says(
    api_url: str, owner: str, keys_url: str, open_admin: OpenAdmin, open_client: OpenClient
) -> None:
    accounts, project = open_admin(owner).projects.service_accounts, keys_url.split("/")[4]
    account = accounts.create(project, name="ci")
    client = open_client(account.api_key.value)
    assert list(client.files.list()) == []
    assert refused(lambda: open_admin(account.api_key.value).projects.create(name="x")).status_code == 403
    accounts.update(account.id, project_id=project, role="viewer", extra_body={})
    assert refused(lambda: client.files.delete("file-0")).status_code == 403
    accounts.delete(account.id, project_id=project)
    assert refused(lambda: client.files.list()).status_code == 401


def test_a_service_account_has_more_keys(api_url: str, owner: str, keys_url: str, open_admin: OpenAdmin) -> None:
    accounts, project = open_admin(owner).projects.service_accounts, keys_url.split("/")[4]
    account = accounts.create(project, name="ci", create_service_account_only=True)
    assert account.api_key is None
    key = accounts.api_keys.create(account.id, project_id=project, name="night", scopes=["jobs:read"])
    me = raw(api_url, key.value, "GET", "/v1/me").json()
    assert (me["scopes"], me["user"]["type"]) == (["jobs:read"], "service_account")
    (listed,) = [entry for entry in open_admin(owner).projects.api_keys.list(project) if entry.id == key.id]
    assert listed.owner.type == "service_account" and listed.owner.service_account.id == account.id


def test_an_admin_key_manages_the_organisation_and_reaches_no_data(
    api_url: str, owner: str, open_admin: OpenAdmin, open_client: OpenClient
) -> None:
    created = open_admin(owner).admin_api_keys.create(name="terraform", expires_in_seconds=3600)
    admin = open_admin(created.value)
    project = admin.projects.create(name="physics")
    account = admin.projects.service_accounts.create(project.id, name="ci")
    assert list(open_client(account.api_key.value).files.list()) == []
    error = refused(lambda: open_client(created.value).files.list())
    assert error.status_code == 403
    assert [key.id for key in admin.admin_api_keys.list()] == [created.id]
    admin.admin_api_keys.delete(created.id)
    assert status(api_url, created.value) == 401


def test_the_keys_of_an_archived_project_are_refused(api_url: str, owner: str, open_admin: OpenAdmin) -> None:
    admin = open_admin(owner)
    project = admin.projects.create(name="physics")
    account = admin.projects.service_accounts.create(project.id, name="ci")
    assert admin.projects.archive(project.id).status == "archived"
    answer = raw(api_url, account.api_key.value, "GET", "/v1/me")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "access_ended")
    assert [entry.name for entry in admin.projects.list()] == ["main"]
    assert len(list(admin.projects.list(include_archived=True))) == 2


def test_a_key_that_is_nobodys_gives_no_more_than_its_scopes(
    api_url: str, make_key: Callable[..., str], keys_url: str
) -> None:
    bare = make_key(scopes=("keys:own", "files:read"))
    new = made(api_url, bare, keys_url)
    assert set(new["scopes"]) == {"keys:own", "files:read"} and new["owner"]["type"] == "project"
    everything = make_key(scopes=SCOPES)
    assert made(api_url, everything, keys_url, scopes=["platform_organizations:write"])["value"]


def test_the_hash_of_a_new_key_says_its_pepper(system_engine: Engine, owner: str) -> None:
    with system_session(system_engine) as session:
        assert session.scalars(select(ApiKey.pepper)).one() is not None
