"""Releases: a strategy and the expert versions that it pins."""

import builtins
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from zhub.client.lifecycle import Aliases
from zhub.client.transport import Http, path_part
from zhub.client.wire.releases import DiffRecord, ReleaseRecord, ShadowRecord

MAX_PAGE = 100


class Releases:
    """Release versions; ``aliases`` are their own."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self.aliases = Aliases(http, "releases")

    def create(
        self,
        name: str,
        *,
        strategy: str,
        experts: Sequence[Mapping[str, Any]],
        classifier: str | None = None,
        description: str | None = None,
    ) -> ReleaseRecord:
        """Make a version of a release. Each of ``experts`` has a ``model``, and may have a ``weight`` and a
        ``description``. ``classifier``: the expert version that the strategy of that name asks."""
        body: dict[str, Any] = {"name": name, "strategy": strategy, "experts": list(experts)}
        body |= {"description": description} | ({"classifier": classifier} if classifier is not None else {})
        return ReleaseRecord.model_validate(self._http.post("/v1/releases", body))

    def get(self, name: str) -> ReleaseRecord:
        """The version ``<project>.<release>@v<number>``, or the one that ``<project>.<release>@<alias>`` points to."""
        return ReleaseRecord.model_validate(self._http.get(f"/v1/releases/{path_part(name)}"))

    def list(self, release: str | None = None, *, limit: int | None = None) -> builtins.list[ReleaseRecord]:
        """The versions of the project's releases, or of one, newest first, at most ``limit``."""
        asked: dict[str, Any] = {} if release is None else {"release": release}
        entries = self._http.pages("/v1/releases", limit=min(limit or MAX_PAGE, MAX_PAGE), **asked)
        return [ReleaseRecord.model_validate(entry) for entry in itertools.islice(entries, limit)]

    def diff(self, name: str, *, against: str | None = None) -> DiffRecord:
        """What differs in how a version answers from ``against``, or from what ``@prod`` of its release points to."""
        asked: dict[str, Any] = {} if against is None else {"against": against}
        return DiffRecord.model_validate(self._http.get(f"/v1/releases/{path_part(name)}/diff", **asked))

    def start_shadow(self, alias: str, version: str, *, share: float = 1.0) -> ShadowRecord:
        """Let a version answer ``share`` of the requests of ``<project>.<release>@<alias>`` beside it."""
        body = {"version": version, "share": share}
        return ShadowRecord.model_validate(self._http.put(f"{self.aliases.path(alias)}/shadow", body))

    def shadow(self, alias: str) -> ShadowRecord:
        """The newest trial of a shadow of ``<project>.<release>@<alias>``."""
        return ShadowRecord.model_validate(self._http.get(f"{self.aliases.path(alias)}/shadow"))

    def end_shadow(self, alias: str) -> None:
        """End the trial that runs. What was counted stays."""
        self._http.delete(f"{self.aliases.path(alias)}/shadow")

    def delete(self, name: str) -> None:
        """Delete a version, which then pins nothing. There is no way back."""
        self._http.delete(f"/v1/releases/{path_part(name)}")
