"""Members, roles and invitations, by the admin half of the unmodified ``openai`` client."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from api_requests import raw, refused
from sqlalchemy import Engine, update

from zhub.database.sessions import system_session
from zhub.models import Invitation

MakeMember = Callable[..., str]
OpenAdmin = Callable[[str], Any]


def id_of(admin: Any, email: str) -> str:
    (user,) = admin.users.list(emails=[email])
    return str(user.id)


def accept(api_url: str, token: str, name: str = "Alice") -> Any:
    return raw(api_url, None, "POST", "/v1/invitations/accept", json={"token": token, "name": name})


def test_who_accepts_an_invitation_is_a_member_with_a_key(
    api_url: str, open_admin: OpenAdmin, make_member: MakeMember
) -> None:
    admin = open_admin(make_member("owner"))
    invitation = admin.invites.create(email="Alice@Acme.org", role="developer")
    accepted = accept(api_url, invitation.token).json()
    assert accepted["user"]["email"] == "alice@acme.org"
    me = raw(api_url, accepted["api_key"]["value"], "GET", "/v1/me").json()
    assert (me["user"]["role"], me["project"]["name"]) == ("developer", "main")
    assert admin.invites.retrieve(invitation.id).status == "accepted"


def test_an_invitation_gives_roles_in_projects(api_url: str, open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(make_member("owner"))
    physics = admin.projects.create(name="physics")
    invitation = admin.invites.create(email="a@b.org", role="reader", projects=[{"id": physics.id, "role": "member"}])
    key = accept(api_url, invitation.token).json()["api_key"]["value"]
    me = raw(api_url, key, "GET", "/v1/me").json()
    assert me["project"]["name"] == "physics"
    assert (me["user"]["role"], me["user"]["project_role"]) == ("member", "developer")
    assert [member.role for member in admin.projects.users.list(physics.id)] == ["developer"]


def test_an_invitation_is_accepted_once(api_url: str, open_admin: OpenAdmin, make_member: MakeMember) -> None:
    invitation = open_admin(make_member("owner")).invites.create(email="a@b.org", role="viewer")
    answers = [accept(api_url, invitation.token) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401]


def test_an_invitation_that_was_taken_back_is_worth_nothing(
    api_url: str, open_admin: OpenAdmin, make_member: MakeMember
) -> None:
    admin = open_admin(make_member("owner"))
    invitation = admin.invites.create(email="a@b.org", role="viewer")
    admin.invites.delete(invitation.id)
    assert accept(api_url, invitation.token).status_code == 401


def test_a_new_invitation_of_an_address_takes_the_earlier_one_back(
    api_url: str, open_admin: OpenAdmin, make_member: MakeMember
) -> None:
    admin = open_admin(make_member("owner"))
    first, second = (admin.invites.create(email="a@b.org", role="viewer") for _ in range(2))
    assert accept(api_url, first.token).status_code == 401
    assert accept(api_url, second.token).status_code == 200


def test_an_invitation_expires(
    api_url: str, open_admin: OpenAdmin, make_member: MakeMember, system_engine: Engine
) -> None:
    invitation = open_admin(make_member("owner")).invites.create(email="a@b.org", role="viewer")
    with system_session(system_engine) as session:
        session.execute(update(Invitation).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    answer = accept(api_url, invitation.token)
    assert answer.status_code == 401 and "expired on" in answer.json()["error"]["message"]


def test_the_token_is_stored_nowhere_and_shown_once(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(make_member("owner"))
    made = admin.invites.create(email="a@b.org", role="viewer")
    assert made.token and "token" not in admin.invites.retrieve(made.id).model_dump()


def test_who_is_a_member_is_not_invited_again(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(make_member("owner", email="a@b.org"))
    assert refused(lambda: admin.invites.create(email="A@b.org", role="viewer")).status_code == 409


@pytest.mark.parametrize("email", ["", "a", "a@", "@b.org", "a b@c.org", "a@b@c"])
def test_what_is_no_address_is_not_invited(open_admin: OpenAdmin, make_member: MakeMember, email: str) -> None:
    admin = open_admin(make_member("owner"))
    error = refused(lambda: admin.invites.create(email=email, role="viewer"))
    assert (error.status_code, error.param) == (400, "email")


def test_an_unknown_role_is_refused_with_those_there_are(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    error = refused(lambda: open_admin(make_member("owner")).invites.create(email="a@b.org", role="develper"))
    assert "Did you mean 'developer'?" in error.message


def test_another_role_holds_for_keys_at_once(
    api_url: str, open_admin: OpenAdmin, open_client: Callable[..., openai.OpenAI], make_member: MakeMember
) -> None:
    admin, theirs = open_admin(make_member("owner")), make_member("viewer", email="a@b.org")
    client = open_client(theirs)
    assert refused(lambda: client.files.delete("file-0")).status_code == 403
    admin.users.update(id_of(admin, "a@b.org"), role="developer")
    assert refused(lambda: client.files.delete("file-0")).status_code == 404


def test_the_keys_of_who_was_removed_are_refused_at_once(
    open_admin: OpenAdmin, open_client: Callable[..., openai.OpenAI], make_member: MakeMember
) -> None:
    admin, client = open_admin(make_member("owner")), open_client(make_member("developer", email="a@b.org"))
    assert list(client.files.list()) == []
    admin.users.delete(id_of(admin, "a@b.org"))
    error = refused(lambda: client.files.list())
    assert error.status_code == 401 and "left the organisation" in error.message


def test_the_last_owner_neither_leaves_nor_is_demoted(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(make_member("owner", email="a@b.org"))
    only = id_of(admin, "a@b.org")
    for call in (lambda: admin.users.delete(only), lambda: admin.users.update(only, role="admin")):
        error = refused(call)
        assert error.status_code == 409 and "last owner" in error.message
    assert admin.users.retrieve(only).role == "owner"


def test_one_of_two_owners_may_leave(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(make_member("owner"))
    make_member("owner", email="a@b.org")
    assert admin.users.delete(id_of(admin, "a@b.org")).deleted


def test_two_owners_who_leave_at_once_do_not_leave_none(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    emails = ("a@b.org", "c@d.org")
    admins = [open_admin(make_member("owner", email=email)) for email in emails]
    ids = [id_of(admins[0], email) for email in emails]
    barrier, statuses = threading.Barrier(2), []

    def leave(admin: Any, user_id: str) -> None:
        barrier.wait(timeout=10)
        try:
            admin.users.delete(user_id)
            statuses.append(200)
        except openai.APIStatusError as exc:
            statuses.append(exc.status_code)

    threads = [threading.Thread(target=leave, args=pair) for pair in zip(admins, ids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(statuses) == [200, 409]


def test_nobody_gives_or_takes_a_role_above_their_own(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    make_member("owner", email="o@b.org")
    make_member("viewer", email="v@b.org")
    admin = open_admin(make_member("admin"))
    owner, viewer = id_of(admin, "o@b.org"), id_of(admin, "v@b.org")
    for call in (
        lambda: admin.users.update(viewer, role="owner"),
        lambda: admin.users.update(owner, role="viewer"),
        lambda: admin.users.delete(owner),
        lambda: admin.invites.create(email="x@y.org", role="owner"),
    ):
        error = refused(call)
        assert (error.status_code, error.code) == (403, "role_too_low")


def test_a_project_admin_stays_inside_the_project(api_url: str, open_admin: OpenAdmin, make_member: MakeMember) -> None:
    owner = open_admin(make_member("owner"))
    (main,) = owner.projects.list()
    physics = owner.projects.create(name="physics")
    make_member("member", email="a@b.org")
    admin = open_admin(make_member("member", "admin"))
    assert admin.projects.users.create(main.id, role="viewer", email="a@b.org").role == "viewer"
    assert refused(lambda: admin.projects.users.create(physics.id, role="viewer", email="a@b.org")).status_code == 404
    assert refused(lambda: admin.projects.create(name="chemistry")).status_code == 403
    assert refused(lambda: admin.invites.create(email="x@y.org", role="viewer")).status_code == 403
    assert refused(lambda: admin.users.list()).status_code == 403


def test_a_role_in_a_project_is_changed_and_taken_back(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(make_member("owner"))
    (main,) = admin.projects.list()
    make_member("member", email="a@b.org")
    added = admin.projects.users.create(main.id, role="viewer", email="a@b.org")
    assert admin.projects.users.update(added.id, project_id=main.id, role="admin").role == "admin"
    admin.projects.users.delete(added.id, project_id=main.id)
    assert list(admin.projects.users.list(main.id)) == []
    assert admin.projects.users.create(main.id, role="developer", user_id=added.id).role == "developer"


def test_members_come_in_pages(open_admin: OpenAdmin, make_member: MakeMember) -> None:
    admin = open_admin(make_member("owner"))
    for _ in range(4):
        make_member("viewer")
    assert len({user.id for user in admin.users.list(limit=2)}) == 5
