"""Aliases, promotions through a gate, and schedules."""

import builtins
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.lifecycle import (
    AliasRecord,
    AliasRequestRecord,
    PromotionRecord,
    ProtectedAliasRecord,
    ScheduleRecord,
    TickRecord,
)
from zhub.errors import NotFoundError
from zhub.suggestions import did_you_mean


class Aliases:
    """Names such as ``@prod`` that point to a version of an expert, or of a release."""

    def __init__(self, http: Http, owners: Literal["experts", "releases"] = "experts") -> None:
        self._http = http
        self._owners = owners

    def list(self) -> list[AliasRecord]:
        """The aliases of the project's experts and releases."""
        return [AliasRecord.model_validate(entry) for entry in self._http.get("/v1/aliases")["data"]]

    def get(self, name: str) -> AliasRecord:
        """``<project>.<expert>@<alias>``, or of a release, with every move of it."""
        return AliasRecord.model_validate(self._http.get(self.path(name)))

    def move(
        self, name: str, version: str, *, reason: str | None = None, share: float | None = None
    ) -> AliasRecord | AliasRequestRecord:
        """Point an alias to a version, without a gate; with ``share``, in (0, 1), send that share of a release's
        requests to it, and leave the alias where it is. Where it is protected, that is asked for."""
        body: dict[str, Any] = {"version": version, "reason": reason}
        if share is not None:
            body["share"] = share
        answer = self._http.put(self.path(name), body)
        is_asked = answer["object"] == "alias.request"
        return AliasRequestRecord.model_validate(answer) if is_asked else AliasRecord.model_validate(answer)

    def roll_back(self, name: str, *, reason: str | None = None) -> AliasRecord:
        """Let an alias point to the version that it pointed to before."""
        return AliasRecord.model_validate(self._http.post(f"{self.path(name)}/rollback", {"reason": reason}))

    def remove(self, name: str) -> None:
        """Let an alias point to nothing. Its moves stay."""
        self._http.delete(self.path(name))

    def path(self, name: str) -> str:
        """Of an alias, in the API."""
        owner, _, alias = name.partition("@")
        return f"/v1/{self._owners}/{path_part(owner)}/aliases/{path_part(alias)}"


class AliasRequests:
    """Protected aliases, and the moves of them that wait for a second person's approval."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def protected(self) -> builtins.list[ProtectedAliasRecord]:
        entries = self._http.get("/v1/protected_aliases")["data"]
        return [ProtectedAliasRecord.model_validate(entry) for entry in entries]

    def protect(self, alias: str, *, hours: int) -> ProtectedAliasRecord:
        """Protect the project's aliases of this name; a request for a move waits so many hours."""
        path = f"/v1/protected_aliases/{path_part(alias)}"
        return ProtectedAliasRecord.model_validate(self._http.put(path, {"request_hours": hours}))

    def unprotect(self, alias: str) -> None:
        self._http.delete(f"/v1/protected_aliases/{path_part(alias)}")

    def list(self, *, status: str | None = None) -> builtins.list[AliasRequestRecord]:
        """The moves that were asked for, newest first."""
        entries = self._http.pages("/v1/alias_requests", limit=100, status=status)
        return [AliasRequestRecord.model_validate(entry) for entry in entries]

    def decide(self, request_id: str, decision: str, *, reason: str | None = None) -> AliasRequestRecord:
        """``approve``, ``reject`` or ``withdraw`` a move."""
        path = f"/v1/alias_requests/{path_part(request_id)}/decision"
        return AliasRequestRecord.model_validate(self._http.post(path, {"decision": decision, "reason": reason}))


class Promotions:
    """Versions that get an alias if they pass a gate."""

    def __init__(self, http: Http, poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def create(self, *, model: str, gate: Mapping[str, Any]) -> PromotionRecord:
        """Have a version measured and, if it passes the gate, promoted."""
        return PromotionRecord.model_validate(self._http.post("/v1/promotions", {"model": model, **gate}))

    def get(self, promotion_id: str) -> PromotionRecord:
        return PromotionRecord.model_validate(self._http.get(f"/v1/promotions/{path_part(promotion_id)}"))

    def list(self, *, limit: int | None = None) -> list[PromotionRecord]:
        """The promotions of the project, newest first, at most ``limit``."""
        entries = self._http.pages("/v1/promotions", limit=min(limit or 100, 100))
        return [PromotionRecord.model_validate(entry) for entry in itertools.islice(entries, limit)]

    def cancel(self, promotion_id: str) -> PromotionRecord:
        return PromotionRecord.model_validate(self._http.post(f"/v1/promotions/{path_part(promotion_id)}/cancel", {}))

    def wait_ended(self, promotion_id: str, *, timeout_s: float = 3600.0) -> PromotionRecord:
        """Return the promotion once it has been decided.

        Raises:
            UnavailableError: it was not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not (promotion := self.get(promotion_id)).ended:
            wait(self._poll_s, deadline, f"{promotion_id} had not ended within {timeout_s:g} s")
        return promotion


class Schedules:
    """Trainings that are submitted automatically."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def create(self, **request: Any) -> ScheduleRecord:
        """Make a schedule of these fields; the API's documentation says what each means."""
        return ScheduleRecord.model_validate(self._http.post("/v1/schedules", request))

    def get(self, schedule_id: str) -> ScheduleRecord:
        return ScheduleRecord.model_validate(self._http.get(f"/v1/schedules/{path_part(schedule_id)}"))

    def list(self, *, status: str | None = None, search: str | None = None) -> builtins.list[ScheduleRecord]:
        """The project's schedules, by name: those with this status, and with this text in a name of theirs."""
        wanted = {name: value for name, value in (("status", status), ("search", search)) if value is not None}
        return [ScheduleRecord.model_validate(entry) for entry in self._http.get("/v1/schedules", **wanted)["data"]]

    def edit(self, schedule_id: str, **changes: Any) -> ScheduleRecord:
        """Change the fields that are given. Within ``training`` too only those; None removes one."""
        return ScheduleRecord.model_validate(self._http.patch(f"/v1/schedules/{path_part(schedule_id)}", changes))

    def find(self, name: str) -> ScheduleRecord:
        """The schedule of this name or id. Raises NotFoundError."""
        schedules = self.list()
        for schedule in schedules:
            if name in (schedule.name, schedule.id):
                return schedule
        known = [schedule.name for schedule in schedules]
        has = f"There are {', '.join(known)}." if known else "The project has none."
        raise NotFoundError("schedule", name, f"{did_you_mean(name, known)} {has}".lstrip())

    def pause(self, schedule_id: str) -> ScheduleRecord:
        return ScheduleRecord.model_validate(self._http.post(f"/v1/schedules/{path_part(schedule_id)}/pause", {}))

    def resume(self, schedule_id: str) -> ScheduleRecord:
        return ScheduleRecord.model_validate(self._http.post(f"/v1/schedules/{path_part(schedule_id)}/resume", {}))

    def run(self, schedule_id: str) -> TickRecord:
        """Fire it at once; the answer is the tick."""
        return TickRecord.model_validate(self._http.post(f"/v1/schedules/{path_part(schedule_id)}/run", {}))

    def delete(self, schedule_id: str) -> None:
        self._http.delete(f"/v1/schedules/{path_part(schedule_id)}")

    def ticks(self, schedule_id: str) -> Sequence[TickRecord]:
        """Its newest ticks, with their outcomes."""
        ticks = self._http.get(f"/v1/schedules/{path_part(schedule_id)}/ticks", limit=100)["data"]
        return [TickRecord.model_validate(entry) for entry in ticks]
