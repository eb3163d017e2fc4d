"""The audit log: written with the act, changed by nobody, read by filters and whole."""

import csv
import io
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from api_requests import raw, refused
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError

from zhub.database.sessions import system_session, tenant_session
from zhub.models import AuditEvent
from zhub.tenancy import audit
from zhub.tenancy.audit import ACTIONS
from zhub.tenancy.keys import Caller

ROOT = Path(__file__).parents[3]
EXPORT = "/v1/organization/audit_logs/export"
MakeMember = Callable[..., str]
OpenAdmin = Callable[[str], Any]


@pytest.fixture
def owner(make_member: MakeMember) -> str:
    return make_member("owner", email="owner@acme.org")


def act(api_url: str, admin: Any) -> tuple[Any, Any]:
    """Make a project and invite somebody."""
    return admin.projects.create(name="physics"), admin.invites.create(email="a@b.org", role="viewer")


def test_an_act_is_logged_with_who_what_and_from_where(api_url: str, owner: str, open_admin: OpenAdmin) -> None:
    admin = open_admin(owner)
    project, invitation = act(api_url, admin)
    sent, created = list(admin.audit_logs.list())
    assert (created.type, sent.type) == ("project.created", "invite.sent")
    assert (created.target, created.after) == (project.id, {"name": "physics"})
    assert sent.actor.type == "api_key" and sent.actor.api_key.user.email == "owner@acme.org"
    assert sent.address == "127.0.0.1" and sent.user_agent.startswith("OpenAI/Python")
    assert sent.after["email"] == "a@b.org" and invitation.token not in str(sent.model_dump())


def test_what_was_before_is_logged(api_url: str, owner: str, open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(owner)
    make_member("viewer", email="a@b.org")
    (user,) = admin.users.list(emails=["a@b.org"])
    admin.users.update(user.id, role="admin")
    (event,) = admin.audit_logs.list(event_types=["user.updated"])
    assert (event.before, event.after) == ({"role": "viewer"}, {"role": "admin"})


def test_what_is_refused_is_not_logged_as_done(api_url: str, owner: str, open_admin: OpenAdmin) -> None:
    admin = open_admin(owner)
    refused(lambda: admin.projects.create(name="main"))
    assert list(admin.audit_logs.list()) == []


def test_keys_releases_webhooks_and_deletions_are_logged(
    client: openai.OpenAI, api_url: str, owner: str, open_admin: OpenAdmin, publish_version: Callable[..., str]
) -> None:
    version = publish_version()
    client.put("/experts/main.summer/aliases/prod", body={"version": version}, cast_to=object)
    client.delete("/experts/main.summer/aliases/prod", cast_to=object)
    hook: Any = client.post(
        "/webhook_endpoints",
        body={"url": "https://example.com/hook", "event_types": ["fine_tuning.job.succeeded"]},
        cast_to=object,
    )
    client.delete(f"/webhook_endpoints/{hook['id']}", cast_to=object)
    client.delete("/experts/main.summer", cast_to=object)
    logged = [(event.type, event.target) for event in open_admin(owner).audit_logs.list(limit=100)][::-1]
    assert logged == [
        ("alias.moved", "main.summer@prod"),
        ("alias.deleted", "main.summer@prod"),
        ("webhook_endpoint.created", hook["id"]),
        ("webhook_endpoint.deleted", hook["id"]),
        ("expert.deleted", "main.summer"),
    ]


def test_events_are_filtered(api_url: str, owner: str, open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(owner)
    project, _ = act(api_url, admin)
    open_admin(make_member("owner", email="other@acme.org")).projects.create(name="chemistry")
    assert [event.target for event in admin.audit_logs.list(resource_ids=[project.id])] == [project.id]
    assert [event.after["name"] for event in admin.audit_logs.list(actor_emails=["other@acme.org"])] == ["chemistry"]
    (mine,) = admin.users.list(emails=["owner@acme.org"])
    assert len(list(admin.audit_logs.list(actor_ids=[mine.id]))) == 2
    assert list(admin.audit_logs.list(project_ids=[project.id])) == []
    moment = next(iter(admin.audit_logs.list())).effective_at
    assert len(list(admin.audit_logs.list(effective_at={"gte": moment - 60, "lte": moment + 60}))) == 3
    assert list(admin.audit_logs.list(effective_at={"gt": moment + 60})) == []
    assert list(admin.audit_logs.list(effective_at={"lt": moment - 60})) == []
    assert len(list(admin.audit_logs.list(limit=1))) == 3


def test_an_action_that_is_not_audited_is_refused(owner: str, open_admin: OpenAdmin) -> None:
    error = refused(lambda: open_admin(owner).audit_logs.list(event_types=["project.create"]))
    assert error.status_code == 400 and "Did you mean 'project.created'?" in error.message


def test_the_log_is_exported_whole_as_lines_and_as_a_table(
    api_url: str, owner: str, caller: Caller, api_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhub.tenancy.audit_log.EXPORTED_AT_ONCE", 2)
    with tenant_session(api_engine, caller.org_id) as session:
        for number in range(5):
            audit.record(session, caller, "file.deleted", f"file-{number}", before={"name": "=1+1"})
    lines = [json.loads(line) for line in raw(api_url, owner, "GET", EXPORT).text.splitlines()]
    assert sorted(line["target"] for line in lines) == [f"file-{number}" for number in range(5)]
    answer = raw(api_url, owner, "GET", f"{EXPORT}?format=csv&event_types=file.deleted")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["target"] for row in rows] == [line["target"] for line in lines]
    assert json.loads(rows[0]["before"]) == {"name": "=1+1"} and rows[0]["project"] == "main"


def test_a_cell_is_never_a_formula(api_url: str, owner: str, caller: Caller, api_engine: Engine) -> None:
    with tenant_session(api_engine, caller.org_id) as session:
        audit.record(session, caller, "file.deleted", "=cmd()")
    assert ",'=cmd()," in raw(api_url, owner, "GET", f"{EXPORT}?format=csv").text


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_events SET actor = 'nobody'", "DELETE FROM audit_events", "TRUNCATE audit_events"],
)
@pytest.mark.parametrize("role", ["api", "system", "owner"])
def test_nobody_changes_or_deletes_a_row(
    api_engine: Engine, system_engine: Engine, owner_engine: Engine, caller: Caller, statement: str, role: str
) -> None:
    with tenant_session(api_engine, caller.org_id) as session:
        audit.record(session, caller, "file.deleted", "file-0")
    engine = {"api": api_engine, "system": system_engine, "owner": owner_engine}[role]
    if role == "owner":
        with owner_engine.begin() as connection:
            connection.execute(text("ALTER TABLE audit_events NO FORCE ROW LEVEL SECURITY"))
    may_delete = role == "system" and statement.startswith("DELETE")  # with the whole organisation alone
    reason = "neither changed nor deleted" if role == "owner" or may_delete else "permission denied"
    with pytest.raises(DBAPIError, match=reason), tenant_session(engine, caller.org_id) as session:
        session.execute(text(statement))
    with system_session(system_engine) as session:
        assert session.scalars(select(AuditEvent.target)).all() == ["file-0"]


def test_rows_go_with_their_organisation_alone(system_engine: Engine, api_engine: Engine, caller: Caller) -> None:
    with tenant_session(api_engine, caller.org_id) as session:
        audit.record(session, caller, "file.deleted", "file-0")
    erasing = text("SELECT set_config('zhub.erasing', :org, true)")
    with (
        pytest.raises(DBAPIError, match="neither changed nor deleted"),
        system_session(system_engine) as session,
    ):
        session.execute(erasing, {"org": str(uuid.uuid4())})
        session.execute(text("DELETE FROM audit_events"))
    with system_session(system_engine) as session:
        session.execute(erasing, {"org": str(caller.org_id)})
        session.execute(text("DELETE FROM audit_events"))
        assert session.scalars(select(AuditEvent.id)).all() == []


def test_every_action_is_audited_somewhere() -> None:
    sources = [
        path.read_text()
        for root in ("platform/zhub", "api/zhub_api")
        for path in (ROOT / root).rglob("*.py")
        if path.name != "audit.py"
    ]
    written = {match for source in sources for match in re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)"', source)}
    assert set(ACTIONS) - written == set()
