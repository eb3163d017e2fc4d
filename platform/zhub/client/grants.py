"""What organisations share with each other: grants, requests for access, and use."""

from collections.abc import Iterator
from typing import Any

from zhub.client.transport import Http, path_part
from zhub.client.wire.grants import GrantRecord, SharedUsageRecord

MAX_PAGE = 100


class Grants:
    """Grants of experts, given by the key's project and received by it."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def give(
        self,
        expert: str,
        organization: str,
        permission: str,
        *,
        project: str | None = None,
        expires_at: int | None = None,
    ) -> GrantRecord:
        """Let another organisation ``view``, ``use``, ``fork`` or ``manage`` an expert, or one version of it."""
        body: dict[str, Any] = {"expert": expert, "organization": organization, "permission": permission}
        body |= {"project": project, "expires_at": expires_at}
        return GrantRecord.model_validate(self._http.post("/v1/grants", body))

    def ask(
        self, expert: str, permission: str, *, message: str | None = None, for_project: bool = False
    ) -> GrantRecord:
        """Ask the owner of an expert (``organisation.project.expert``) for access."""
        body = {"expert": expert, "permission": permission, "message": message, "for_project": for_project}
        return GrantRecord.model_validate(self._http.post("/v1/access_requests", body))

    def decide(
        self, grant_id: str, *, approve: bool, permission: str | None = None, expires_at: int | None = None
    ) -> GrantRecord:
        """Approve or deny a request for access."""
        body = {"approve": approve, "permission": permission, "expires_at": expires_at}
        return GrantRecord.model_validate(self._http.post(f"/v1/grants/{path_part(grant_id)}/decision", body))

    def end(self, grant_id: str) -> GrantRecord:
        """Revoke a grant, deny a request, or give up what was received."""
        return GrantRecord.model_validate(self._http.delete(f"/v1/grants/{path_part(grant_id)}"))

    def list(self, direction: str = "given", *, status: str | None = None) -> Iterator[GrantRecord]:
        """The grants and requests, newest first."""
        entries = self._http.pages("/v1/grants", limit=MAX_PAGE, direction=direction, status=status)
        return (GrantRecord.model_validate(entry) for entry in entries)

    def set_visibility(self, expert: str, visibility: str) -> str:
        """Say who sees an expert without a grant: ``private``, ``organization``, ``granted`` or ``public``."""
        answer = self._http.put(f"/v1/experts/{path_part(expert)}/visibility", {"visibility": visibility})
        return str(answer["visibility"])

    def usage(self) -> Iterator[SharedUsageRecord]:
        """What other organisations have used of the project's experts."""
        return (SharedUsageRecord.model_validate(entry) for entry in self._http.get("/v1/shared_usage")["data"])
