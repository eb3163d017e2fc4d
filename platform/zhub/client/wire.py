"""What the HTTP API answers, as objects. Fields that a newer server adds are kept and ignored."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from zhub.generation import ChosenExpert
from zhub.manifest import Evaluation

ENDED = ("succeeded", "failed", "cancelled")


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class DatasetFile(_Answer):
    """A dataset file. ``status`` is ``uploaded`` until its rows are checked, then ``processed`` or ``error``."""

    id: str
    filename: str
    bytes: int
    created_at: int
    status: str
    status_details: str | None
    sha256: str
    version: int
    validation: dict[str, Any] | None


class BaseModelRecord(_Answer):
    """A base model. ``status`` is ``uploading``, ``decomposing``, then ``ready`` or ``error``."""

    id: str
    created_at: int
    status: str
    error: str | None
    is_default: bool
    cluster: str
    files: list[str]
    hub_id: str | None
    hub_revision: str | None
    weights_fingerprint: str | None
    basis_fingerprint: str | None
    details: dict[str, Any] | None


class FineTuningJob(_Answer):
    """A job. ``status`` is ``queued``, ``running``, ``paused``, or one of ``ENDED``."""

    id: str
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    status: str
    error: dict[str, Any] | None
    training_file: str | None
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int
    suffix: str | None
    attempts: int
    cluster: str

    @property
    def steps(self) -> int:
        """How many steps it was asked to take."""
        return int(self.hyperparameters["n_steps"])

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class JobEvent(_Answer):
    """One thing that happened to a job."""

    id: str
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


class LogLine(_Answer):
    """A line of a job's log. ``at`` is in UTC, by the clock of the worker that wrote it."""

    at: str
    level: str
    logger: str
    message: str
    fence: int


class SeriesPoint(_Answer):
    step: int
    value: float


class SeriesRecord(_Answer):
    """One metric of a job by step. ``count`` is how many points there are, ``points`` what was asked for of them."""

    name: str
    count: int
    points: list[SeriesPoint]


class EstimateRecord(_Answer):
    """What a job would be and take. ``workers`` is how many it takes, unless it ``shares_a_worker`` with others."""

    expert: str
    method: dict[str, Any]
    seed: int
    workers: int
    shares_a_worker: bool
    expected_seconds: float | None
    expected_worker_seconds: float | None


class QueueRecord(_Answer):
    """What a job waits for, or what else ``job_id`` names: an evaluation, a base.

    ``estimated_start`` and ``expected_seconds``, its run time, are None where nobody knows.
    """

    job_id: str
    status: str
    position: int | None
    reason: str
    estimated_start: int | None
    expected_seconds: float | None


class CheckpointRecord(_Answer):
    """A checkpoint that a job keeps; ``fine_tuned_model_checkpoint`` is its name as a model."""

    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int
    size_bytes: int


class EndpointRecord(_Answer):
    """A webhook endpoint. ``signing_secret`` is given only when it was just made or rotated.

    ``not_before``: until when, in seconds of Unix time, its receiver asked to be left alone.
    """

    id: str
    created_at: int
    name: str
    url: str
    event_types: list[str]
    status: str
    status_details: str | None
    not_before: int | None = None
    signing_secret_hint: str
    signing_secret: str | None = None


class EndpointTest(_Answer):
    """What became of an example that was sent to an endpoint."""

    webhook_endpoint_id: str
    event_type: str
    success: bool
    status_code: int | None
    error: str | None
    delivery_id: str


class DeliveryAttempt(_Answer):
    """One try to deliver an event: a status, or an error where there was no whole answer."""

    at: int
    status_code: int | None
    error: str | None
    duration_s: float
    next_try_at: int | None


class DeliveryRecord(_Answer):
    """One event on its way to one endpoint. ``status`` is ``pending``, ``delivered`` or ``failed``."""

    id: str
    created_at: int
    event_id: str
    event_type: str
    data: dict[str, Any]
    status: str
    next_try_at: int | None
    attempts: list[DeliveryAttempt]


class EvaluationResults(_Answer):
    """Mean reward of greedy answers with its 95 % interval; ``pass_at_k`` where answers were sampled as well."""

    mean: float
    low: float
    high: float
    n: int
    parse_failures: int
    pass_at_k: float | None


class EvaluationComparison(_Answer):
    """Two models on the same rows: mean of the first less that of the other, with its 95 % interval."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    verdict: str
    sentence: str


class OtherEvaluation(_Answer):
    """Another model on the same suite; ``comparison`` once both have been measured."""

    id: str
    model: str
    status: str
    results: EvaluationResults | None
    comparison: EvaluationComparison | None


class EvaluationRecord(_Answer):
    """One model measured on one suite. ``others`` is given for a single one only, not in lists."""

    id: str
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    cluster: str
    model: str
    file: str | None
    suite: dict[str, Any]
    suite_digest: str
    results: EvaluationResults | None
    warnings: list[str]
    others: list[OtherEvaluation] = []

    @property
    def settled(self) -> bool:
        """Whether this and every other evaluation of the suite has ended."""
        return all(status in ENDED for status in (self.status, *(other.status for other in self.others)))


class FeedbackSummary(_Answer):
    """How much feedback there is on a version; ``mean_score``, in [-1, 1], is None where there is none."""

    count: int
    mean_score: float | None


class ExpertVersion(_Answer):
    """One version of an expert; ``digest`` is the SHA-256 of its ``manifest.json``."""

    id: str
    created_at: int
    expert: str
    version: int
    base_model: str
    digest: str
    size_bytes: int
    job: str
    uri: str
    feedback: FeedbackSummary
    manifest: dict[str, Any]

    def evaluation(self, split: str) -> Evaluation | None:
        """How base and expert did on the same rows of this split."""
        found = [entry for entry in self.manifest["evaluations"] if entry["split"] == split]
        return Evaluation.model_validate(found[0]) if found else None


class FeedbackRecord(_Answer):
    """How good one answer of a version was: ``score`` in [-1, 1]; ``reference`` would have been right."""

    id: str
    created_at: int
    model: str
    messages: list[dict[str, str]]
    completion: str
    score: float
    reference: str | None
    comment: str | None


class AliasMoveRecord(_Answer):
    """One move of an alias."""

    created_at: int
    origin: str | None = Field(alias="from")
    to: str
    by: str
    reason: str | None


class AliasRecord(_Answer):
    """An alias and the version it points to. ``moves``, newest first, is given for a single one only, not in lists."""

    id: str
    alias: str
    version: str
    moved_at: int
    moves: list[AliasMoveRecord] = []


class GateFinding(_Answer):
    """What a gate found on one suite."""

    file: str
    passed: bool
    sentences: list[str]


class PromotionRecord(_Answer):
    """A version on its way to an alias; ``promoted`` once its gate has decided."""

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
    findings: list[GateFinding] | None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class ScheduleRecord(_Answer):
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
    """How many of the ``on_feedback`` pieces that fire it have come."""
    misfire: str
    overlap: str
    jitter_s: int
    failures: int
    max_failures: int
    status: str
    paused_because: str | None
    next_runs: list[int]


class TickRecord(_Answer):
    """What became of one tick of a schedule."""

    id: str
    created_at: int
    tick: str
    outcome: str
    message: str | None
    job: str | None


class ModelRecord(_Answer):
    """A name that a request may give as ``model``; ``kind`` is ``expert``, ``base`` or ``router``."""

    id: str
    kind: str
    owned_by: str


class Routing(_Answer):
    """How it was decided who answers, and why."""

    strategy: str
    reason: str
    base_model: str


@dataclass(frozen=True)
class ChatPiece:
    """The next piece of an answer, or all of it; every piece says who speaks."""

    text: str
    experts: list[ChosenExpert]
    routing: Routing
    finish_reason: str | None


@dataclass
class TrainingCurve:
    """What a job's events say about its training: one value for each step and for each evaluation."""

    step: int = 0
    rewards: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def add(self, events: Iterable[JobEvent]) -> None:
        """Take in events in their order; an attempt that begins anew begins the curve anew."""
        for event in events:
            values = event.data or {}
            if "step" not in values or (event.type != "metrics" and values.get("type") != "metrics"):
                continue
            if values["step"] <= self.step and self.accuracies:
                self.step, self.rewards, self.accuracies = 0, [], []
            self.step = int(values["step"])
            if "train_reward_mean" in values:
                self.rewards.append(values["train_reward_mean"])
            if "valid_reward_mean" in values:
                self.accuracies.append(values["valid_reward_mean"])
