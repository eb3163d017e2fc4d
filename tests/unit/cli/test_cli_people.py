"""Commands on organisations, members, keys and the audit log, and how somebody logs in."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import pytest
from openid_provider import CLIENT_ID, served_provider

Run = Callable[..., int]
Shown = pytest.CaptureFixture[str]
PROJECT = {"id": "proj-1", "name": "default", "created_at": 1_700_000_000, "status": "active"}
ME = {
    "key_id": "key-1",
    "organization": {"id": "org-1", "name": "acme"},
    "project": {"id": "proj-1", "name": "default"},
    "user": {
        "id": "user-1", "type": "person", "name": "Alice", "email": "alice@acme.org", "role": "owner",
        "project_role": None,
    },
    "scopes": ["chat", "files:read"],
}  # fmt: skip
MEMBER = {"id": "user-2", "name": "Bob", "email": "bob@acme.org", "role": "viewer", "added_at": 1_700_000_000}
KEY = {
    "id": "key-2",
    "name": "laptop",
    "created_at": 1_700_000_000,
    "redacted_value": "zhub_000000000000_…",
    "scopes": ["chat"],
    "owner": {"type": "user", "user": {"email": "alice@acme.org"}},
}
INVITATION = {
    "id": "invite-1", "email": "bob@acme.org", "role": "developer", "projects": [], "status": "pending",
    "invited_by": "alice@acme.org", "expires_at": 1_700_000_000, "token": "zhub-invitation_secret",
}  # fmt: skip
KEYS = "/v1/organization/projects/proj-1/api_keys"


@pytest.fixture
def api(api: Any) -> Any:
    api.add("GET", "/v1/me", ME)
    api.add("GET", "/v1/organization/users", api_double.page([MEMBER]))
    api.add("GET", "/v1/organization/projects", api_double.page([PROJECT, PROJECT | {"id": "proj-2", "name": "maths"}]))
    return api


def test_whoami_says_whom_the_key_stands_for(zhub: Run, capsys: Shown) -> None:
    assert zhub("whoami") == 0
    shown = capsys.readouterr().out
    assert "alice@acme.org" in shown and "owner" in shown and "chat, files:read" in shown


def test_a_new_key_is_shown_on_standard_output_and_made_in_the_keys_own_project(
    zhub: Run, api: Any, capsys: Shown
) -> None:
    api.add("POST", KEYS, KEY | {"value": "zhub_secret"})
    assert zhub("keys", "create", "laptop", "--scope", "chat", "--lasts", "30d") == 0
    assert api.bodies("POST", KEYS) == [{"name": "laptop", "scopes": ["chat"], "expires_in_seconds": 30 * 86_400}]
    shown = capsys.readouterr()
    assert "zhub_secret" in shown.out and "zhub_secret" not in shown.err


def test_a_key_is_made_in_a_project_by_its_name(zhub: Run, api: Any) -> None:
    api.add("POST", "/v1/organization/projects/proj-2/api_keys", KEY | {"value": "zhub_secret"})
    assert zhub("keys", "create", "laptop", "--project", "maths") == 0
    assert zhub("keys", "create", "laptop", "--project", "physics") == 4


def test_keys_are_listed_with_their_owners(zhub: Run, api: Any, capsys: Shown) -> None:
    api.add("GET", KEYS, api_double.page([KEY, KEY | {"id": "key-3", "owner": {"type": "project"}}]))
    assert zhub("keys", "ls") == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert "alice@acme.org" in first and "the project" in second


@pytest.mark.parametrize(
    ("options", "sent"), [((), {}), (("--grace", "2h"), {"grace_seconds": 7200}), (("--leaked",), {"grace_seconds": 0})]
)
def test_a_rotated_key_keeps_its_grace_unless_it_leaked(
    zhub: Run, api: Any, options: tuple[str, ...], sent: dict[str, int]
) -> None:
    api.add("POST", f"{KEYS}/key-2/rotate", KEY | {"value": "zhub_secret"})
    assert zhub("keys", "rotate", "key-2", *options) == 0
    assert api.bodies("POST", f"{KEYS}/key-2/rotate") == [sent]


def test_a_member_is_named_by_address(zhub: Run, api: Any) -> None:
    api.add("POST", "/v1/organization/users/user-2", MEMBER | {"role": "admin"})
    api.add("DELETE", "/v1/organization/users/user-2", {"deleted": True})
    assert zhub("members", "role", "Bob@acme.org", "admin") == 0
    assert zhub("members", "rm", "bob@acme.org") == 0
    assert zhub("members", "rm", "eve@acme.org") == 4


def test_an_invitation_gives_roles_in_projects_by_their_names(zhub: Run, api: Any, capsys: Shown) -> None:
    api.add("POST", "/v1/organization/invites", INVITATION)
    assert zhub("invitations", "send", "bob@acme.org", "--project", "maths=viewer") == 0
    (sent,) = api.bodies("POST", "/v1/organization/invites")
    assert sent["projects"] == [{"id": "proj-2", "role": "viewer"}]
    assert "zhub-invitation_secret" in capsys.readouterr().out
    assert zhub("invitations", "send", "bob@acme.org", "--project", "maths") == 2


def test_the_audit_log_shows_what_changed(zhub: Run, api: Any, capsys: Shown) -> None:
    event = {
        "id": "audit-1", "type": "user.updated", "effective_at": 1_700_000_000, "actor": {"name": "alice@acme.org"},
        "project": None, "target": "user-2", "before": {"role": "viewer"}, "after": {"role": "admin"},
        "address": None, "user_agent": None,
    }  # fmt: skip
    api.add("GET", "/v1/organization/audit_logs", api_double.page([event]))
    assert zhub("audit", "--action", "user.updated", "--by", "alice@acme.org") == 0
    assert "role: viewer -> admin" in capsys.readouterr().out
    query = api.requests[-1].url.params
    assert (query["event_types"], query["actor_emails"]) == ("user.updated", "alice@acme.org")


def test_the_audit_log_is_exported_as_it_comes(zhub: Run, api: Any, capsys: Shown) -> None:
    api.add("GET", "/v1/organization/audit_logs/export", b'{"a": 1}\n')
    assert zhub("audit", "--export", "jsonl") == 0
    assert capsys.readouterr().out == '{"a": 1}\n'


@pytest.fixture
def logged_in(zhub: Run, api: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> Path:
    """Log in, and show it on what ``capsys`` reads; the file that is kept of it."""
    monkeypatch.delenv("ZHUB_API_KEY")
    monkeypatch.setenv("ZHUB_CONFIG_DIR", str(tmp_path / "config" / "zhub"))
    login = {
        "organization": "acme",
        "user": MEMBER,
        "api_key": KEY | {"value": api_examples.KEY, "expires_at": 2_000_000_000},
    }
    api.keyless = {"/v1/login"}
    with served_provider() as provider:
        api.add("GET", "/v1/login", {"issuer": provider.issuer, "client_id": CLIENT_ID})
        api.add("POST", "/v1/login", login)
        assert zhub("login", "--url", url, "--organization", "acme") == 0
    monkeypatch.delenv("ZHUB_API_URL")
    return tmp_path / "config" / "zhub" / "credentials.json"


def test_a_login_is_kept_for_its_owner_alone_and_used_by_other_commands(
    zhub: Run, api: Any, logged_in: Path, capsys: Shown
) -> None:
    assert stat.S_IMODE(logged_in.stat().st_mode) == 0o600
    (sent,) = api.bodies("POST", "/v1/login")
    assert sent["organization"] == "acme" and sent["id_token"].count(".") == 2
    assert "ABCD-EFGH" in capsys.readouterr().err
    assert zhub("whoami") == 0
    assert "alice@acme.org" in capsys.readouterr().out


def test_a_logout_ends_the_key_and_forgets_it(zhub: Run, api: Any, logged_in: Path) -> None:
    api.add("POST", "/v1/logout", {"deleted": True})
    assert zhub("logout") == 0
    assert not logged_in.exists() and len(api.bodies("POST", "/v1/logout")) == 1
    assert zhub("logout") == 0


def test_a_login_whose_key_has_ended_is_forgotten_as_well(zhub: Run, api: Any, logged_in: Path) -> None:
    api.refuse("POST", "/v1/logout", 401, "invalid_api_key", "It expired.")
    assert zhub("logout") == 0
    assert not logged_in.exists()


def test_the_environment_and_a_named_data_directory_win_over_a_login(
    zhub: Run, logged_in: Path, tmp_path: Path, capsys: Shown
) -> None:
    assert logged_in.exists()
    assert zhub("whoami", "--data-dir", str(tmp_path / "other")) == 1
    assert "No zhub was started on" in capsys.readouterr().err


def test_an_operator_makes_an_organization_and_gets_the_owners_token(zhub: Run, api: Any, capsys: Shown) -> None:
    made = {"id": "org-2", "name": "initech", "created_at": 1, "status": "active", "invitation": INVITATION}
    api.add("POST", "/v1/platform/organizations", made)
    assert zhub("organizations", "create", "initech", "--owner", "bob@acme.org") == 0
    assert "zhub-invitation_secret" in capsys.readouterr().out
    assert zhub("organizations", "create", "initech", "--owner", "bob@acme.org", "--json") == 0
    assert json.loads(capsys.readouterr().out)["invitation"]["token"] == "zhub-invitation_secret"
