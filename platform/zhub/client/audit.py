"""The audit log of the organisation."""

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zhub.client.transport import Http
from zhub.client.wire.administration import AuditRecord

PATH = "/v1/organization/audit_logs"


@dataclass(frozen=True)
class AuditQuery:
    """Which events: of these actions, by these people, on these things, in this span of Unix time."""

    actions: Sequence[str] = ()
    actors: Sequence[str] = ()
    targets: Sequence[str] = ()
    since: int | None = None
    until: int | None = None

    def params(self) -> dict[str, Any]:
        return {
            "event_types": list(self.actions) or None,
            "actor_emails": list(self.actors) or None,
            "resource_ids": list(self.targets) or None,
            "effective_at[gte]": self.since,
            "effective_at[lt]": self.until,
        }


class AuditLog:
    """Who did what."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def list(self, wanted: AuditQuery, *, most: int) -> builtins.list[AuditRecord]:
        """The newest events, at most ``most``."""
        entries = self._http.pages(PATH, limit=100, most=most, **wanted.params())
        return [AuditRecord.model_validate(entry) for entry in entries]

    def export(self, wanted: AuditQuery, layout: Literal["jsonl", "csv"]) -> str:
        """All events, oldest first, as JSON Lines or CSV."""
        params = {name: value for name, value in wanted.params().items() if value is not None}
        with self._http.stream("GET", f"{PATH}/export", params=params | {"format": layout}) as response:
            return "".join(response.iter_text())
