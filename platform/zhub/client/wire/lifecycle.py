"""Answers about aliases, promotions and schedules."""

from typing import Any

from pydantic import Field

from zhub.client.wire.answer import ENDED, Answer


class CanaryRecord(Answer):
    """The version of a release that gets a share of an alias's requests."""

    version: str
    share: float


class AliasMoveRecord(Answer):
    """One move of an alias. ``canary`` is what the alias of a release had after it."""

    created_at: int
    origin: str | None = Field(alias="from")
    to: str | None
    by: str
    reason: str | None
    canary: CanaryRecord | None = None


class AliasRecord(Answer):
    """An alias and the version that it points to. ``moves``, newest first, is given for a single one, not in lists.

    ``canary`` is the version beside it, of a release only.
    """

    id: str
    alias: str
    version: str | None
    canary: CanaryRecord | None = None
    moved_at: int
    moves: list[AliasMoveRecord] = []


class ProtectedAliasRecord(Answer):
    """The name of an alias that moves by approved requests only."""

    id: str
    created_at: int
    by: str
    request_hours: int


class AliasRequestRecord(Answer):
    """A move of a protected alias that ``person`` asked for: open, approved, rejected, withdrawn or expired."""

    id: str
    created_at: int
    alias: str
    version: str
    expected: str | None
    share: float | None
    promotion: str | None
    by: str
    person: str
    reason: str | None
    status: str
    expires_at: int
    decided_at: int | None
    decided_by: str | None
    decided_because: str | None


class GateFinding(Answer):
    """The result of a gate on one suite."""

    file: str
    passed: bool
    sentences: list[str]


class PromotionRecord(Answer):
    """The promotion of a version to an alias; ``promoted`` is None until its gate has decided."""

    id: str
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    model: str | None
    training_job: str | None
    alias: str
    gate: dict[str, Any]
    promoted: bool | None
    approval: str | None = None
    """The request for a second person's approval, where the alias is protected."""
    findings: list[GateFinding] | None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class ScheduleRecord(Answer):
    """A schedule; ``next_runs`` in seconds of Unix time, none while it is paused."""

    id: str
    created_at: int
    name: str
    dataset: str
    training: dict[str, Any]
    cron: str | None
    timezone: str
    on_new_data: bool
    on_regression: str | None
    on_feedback: int | None
    new_feedback: int | None
    """How many pieces of feedback have come since it fired last; it fires at ``on_feedback``."""
    on_completions: int | None = None
    completions_where: str | None = None
    new_completions: int | None = None
    """How many of them have come since it fired last for them; it fires at ``on_completions``."""
    misfire: str
    overlap: str
    jitter_s: int
    failures: int
    max_failures: int
    status: str
    paused_because: str | None
    next_runs: list[int]


class TickRecord(Answer):
    """One tick of a schedule, with its outcome."""

    id: str
    created_at: int
    tick: str
    outcome: str
    message: str | None
    job: str | None
