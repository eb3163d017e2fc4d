"""Organisations, projects, members, invitations, service accounts and keys."""

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from zhub.client.transport import Http, path_part
from zhub.client.wire.administration import (
    AccountRecord,
    InvitationRecord,
    KeyRecord,
    MemberRecord,
    OrganizationRecord,
    ProjectRecord,
)
from zhub.errors import InvalidRequestError, NotFoundError

ORGANIZATION = "/v1/organization"
PLATFORM = "/v1/platform/organizations"
MAX_PAGE = 100


class Organizations:
    """All organisations: for operators."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def list(self) -> builtins.list[OrganizationRecord]:
        return [OrganizationRecord.model_validate(entry) for entry in self._http.pages(PLATFORM, limit=MAX_PAGE)]

    def create(self, name: str, *, owner: str, project: str = "default") -> OrganizationRecord:
        """Make an organisation with a project. Its answer's ``invitation`` has the token for the first owner."""
        body = {"name": name, "owner": owner, "project": project}
        return OrganizationRecord.model_validate(self._http.post(PLATFORM, body))

    def invite_owner(self, name: str, email: str) -> InvitationRecord:
        answer = self._http.post(f"{PLATFORM}/{self._id_of(name)}/owners", {"email": email})
        return InvitationRecord.model_validate(answer)

    def suspend(self, name: str) -> OrganizationRecord:
        return OrganizationRecord.model_validate(self._http.post(f"{PLATFORM}/{self._id_of(name)}/suspend", {}))

    def resume(self, name: str) -> OrganizationRecord:
        return OrganizationRecord.model_validate(self._http.post(f"{PLATFORM}/{self._id_of(name)}/resume", {}))

    def _id_of(self, name: str) -> str:
        return _id_of("organization", name, self.list())


class Projects:
    """The projects of the organisation."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def list(self, *, archived: bool = False) -> builtins.list[ProjectRecord]:
        entries = self._http.pages(f"{ORGANIZATION}/projects", limit=MAX_PAGE, include_archived=archived or None)
        return [ProjectRecord.model_validate(entry) for entry in entries]

    def create(self, name: str) -> ProjectRecord:
        return ProjectRecord.model_validate(self._http.post(f"{ORGANIZATION}/projects", {"name": name}))

    def archive(self, name: str) -> ProjectRecord:
        return ProjectRecord.model_validate(self._http.post(f"{self.path(name)}/archive", {}))

    def path(self, name: str | None) -> str:
        """Where a project is: that of a name, or that of the key.

        Raises:
            NotFoundError: the organisation has no project of this name.
            InvalidRequestError: none was named, and the key is of none.
        """
        mine = self._http.get("/v1/me")["project"]
        if name is None:
            if mine is None:
                raise InvalidRequestError("Your key is of no project. Name one with --project.")
            return f"{ORGANIZATION}/projects/{mine['id']}"
        if mine is not None and mine["name"] == name:
            return f"{ORGANIZATION}/projects/{mine['id']}"
        return f"{ORGANIZATION}/projects/{_id_of('project', name, self.list())}"


class Members:
    """Who is in the organisation and in its projects; ``project``: in that one instead of the organisation."""

    def __init__(self, http: Http, projects: Projects) -> None:
        self._http = http
        self._projects = projects

    def list(self, project: str | None = None) -> builtins.list[MemberRecord]:
        entries = self._http.pages(self._path(project), limit=MAX_PAGE)
        return [MemberRecord.model_validate(entry) for entry in entries]

    def add(self, email: str, role: str, *, project: str) -> MemberRecord:
        """Give somebody of the organisation a role in a project."""
        body = {"email": email, "role": role}
        return MemberRecord.model_validate(self._http.post(self._path(project), body))

    def set_role(self, email: str, role: str, *, project: str | None = None) -> MemberRecord:
        answer = self._http.post(f"{self._path(project)}/{self._id_of(email, project)}", {"role": role})
        return MemberRecord.model_validate(answer)

    def remove(self, email: str, *, project: str | None = None) -> None:
        """Take somebody's role in a project; or let them leave the organisation, which ends all their keys."""
        self._http.delete(f"{self._path(project)}/{self._id_of(email, project)}")

    def _path(self, project: str | None) -> str:
        return f"{ORGANIZATION if project is None else self._projects.path(project)}/users"

    def _id_of(self, email: str, project: str | None) -> str:
        for member in self.list(project):
            if email.lower() in (member.email, member.id):
                return member.id
        raise NotFoundError("member", email)


class Invitations:
    """Invitations into the organisation."""

    def __init__(self, http: Http, projects: Projects) -> None:
        self._http = http
        self._projects = projects

    def list(self) -> builtins.list[InvitationRecord]:
        entries = self._http.pages(f"{ORGANIZATION}/invites", limit=MAX_PAGE)
        return [InvitationRecord.model_validate(entry) for entry in entries]

    def send(self, email: str, role: str, projects: Mapping[str, str]) -> InvitationRecord:
        """Invite somebody. ``projects``: roles in projects, by their names. Its answer has the token."""
        ids = [{"id": self._projects.path(name).rpartition("/")[2], "role": given} for name, given in projects.items()]
        body = {"email": email, "role": role, "projects": ids}
        return InvitationRecord.model_validate(self._http.post(f"{ORGANIZATION}/invites", body))

    def revoke(self, invitation_id: str) -> None:
        self._http.delete(f"{ORGANIZATION}/invites/{path_part(invitation_id)}")


class Keys:
    """Keys of a project, or (``admin``) of the organisation itself."""

    def __init__(self, http: Http, projects: Projects) -> None:
        self._http = http
        self._projects = projects

    def list(self, project: str | None = None, *, admin: bool = False) -> builtins.list[KeyRecord]:
        entries = self._http.pages(self._path(project, admin), limit=MAX_PAGE)
        return [KeyRecord.model_validate(entry) for entry in entries]

    def create(
        self,
        name: str,
        *,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        lasts_s: int | None = None,
        admin: bool = False,
    ) -> KeyRecord:
        """Make a key. Its answer has the key itself."""
        body: dict[str, Any] = {"name": name, "expires_in_seconds": lasts_s}
        if not admin:
            body["scopes"] = None if scopes is None else list(scopes)
        return KeyRecord.model_validate(self._http.post(self._path(project, admin), body))

    def rotate(self, key_id: str, *, project: str | None = None, grace_s: int | None = None) -> KeyRecord:
        """Make a key in the place of another, which is valid for ``grace_s`` more; 0: it is revoked at once."""
        body = {} if grace_s is None else {"grace_seconds": grace_s}
        return KeyRecord.model_validate(
            self._http.post(f"{self._path(project, False)}/{path_part(key_id)}/rotate", body)
        )

    def revoke(self, key_id: str, *, project: str | None = None, admin: bool = False) -> None:
        self._http.delete(f"{self._path(project, admin)}/{path_part(key_id)}")

    def _path(self, project: str | None, admin: bool) -> str:
        return f"{ORGANIZATION}/admin_api_keys" if admin else f"{self._projects.path(project)}/api_keys"


class ServiceAccounts:
    """Members of a project that are programs."""

    def __init__(self, http: Http, projects: Projects) -> None:
        self._http = http
        self._projects = projects

    def list(self, project: str | None = None) -> builtins.list[AccountRecord]:
        entries = self._http.pages(self._path(project), limit=MAX_PAGE)
        return [AccountRecord.model_validate(entry) for entry in entries]

    def create(self, name: str, *, role: str, project: str | None = None, lasts_s: int | None = None) -> AccountRecord:
        """Make a service account with a key, which is in its answer."""
        body = {"name": name, "role": role, "expires_in_seconds": lasts_s}
        return AccountRecord.model_validate(self._http.post(self._path(project), body))

    def create_key(
        self,
        account_id: str,
        name: str,
        *,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        lasts_s: int | None = None,
    ) -> KeyRecord:
        body = {"name": name, "scopes": None if scopes is None else list(scopes), "expires_in_seconds": lasts_s}
        path = f"{self._path(project)}/{path_part(account_id)}/api_keys"
        return KeyRecord.model_validate(self._http.post(path, body))

    def set_role(self, account_id: str, role: str, *, project: str | None = None) -> AccountRecord:
        path = f"{self._path(project)}/{path_part(account_id)}"
        return AccountRecord.model_validate(self._http.post(path, {"role": role}))

    def delete(self, account_id: str, *, project: str | None = None) -> None:
        self._http.delete(f"{self._path(project)}/{path_part(account_id)}")

    def _path(self, project: str | None) -> str:
        return f"{self._projects.path(project)}/service_accounts"


def _id_of(kind: str, name: str, entries: Sequence[OrganizationRecord] | Sequence[ProjectRecord]) -> str:
    for entry in entries:
        if name in (entry.name, entry.id):
            return entry.id
    raise NotFoundError(kind, name)
